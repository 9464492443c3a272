"""Spherical interpolation between two experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.knobs import WEIGHT, read
from merging.method import Knob, Slot
from merging.spherical import slerp


@dataclass(frozen=True)
class Slerp:
    """``slerp(theta_1, theta_2, t)`` with ``t = w_2 / (w_1 + w_2)``, each tensor one vector.

    Takes exactly two experts. The endpoints keep their lengths, as is usual for weights.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3.
    """

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """One weight per expert."""
        return (WEIGHT,)

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the interpolated weights; see `MergeMethod.merge`.

        Raises:
            MergeError: an argument is refused, or the weights sum to zero.
        """
        inputs = read(self, slot, base, deltas, knobs, least=2, most=2)
        if inputs.unmoved:
            return base.clone()
        _, t = inputs.shares()
        first, second = inputs.deltas
        return slerp(base + first, base + second, t)
