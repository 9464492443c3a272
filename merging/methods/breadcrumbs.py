"""Model breadcrumbs: sums of task vectors without outliers and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.consensus import add_sum
from merging.knobs import DENSITY, WEIGHT, read, scale_knob
from merging.method import Knob, Slot
from merging.sparsify import band


@dataclass(frozen=True)
class Breadcrumbs:
    """``base + scale sum_i w_i m_i d_i``, m without the gamma n largest and the smallest entries.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1.

    Source: Davari & Belilovsky 2023, Model breadcrumbs, arXiv:2312.06795. The masks are per
    tensor, and the density says what is left after both cuts, as in mergekit.
    """

    normalize: bool = False

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Weight, density and gamma (share of outliers removed) per expert, one scale."""
        return (
            WEIGHT,
            DENSITY,
            Knob("gamma", low=0.0, high=1.0, start=0.01, scale=0.01),
            scale_knob(self.normalize),
        )

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the merged task vectors; see `MergeMethod.merge`.

        Raises:
            MergeError: an argument is refused, or weights to be normalised sum to zero.
        """
        inputs = read(self, slot, base, deltas, knobs)
        if inputs.unmoved:
            return base.clone()
        each = inputs.each
        kept = [
            band(delta, density, gamma)
            for delta, density, gamma in zip(
                inputs.deltas, each["density"], each["gamma"], strict=True
            )
        ]
        return add_sum(base, inputs, kept, normalize=self.normalize)
