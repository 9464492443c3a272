"""DELLA without sign election: magnitude-aware drop, then task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.consensus import add_sum
from merging.knobs import DENSITY, WEIGHT, read, scale_knob
from merging.method import Knob, Slot
from merging.seeding import generator
from merging.sparsify import magprune


@dataclass(frozen=True)
class DellaLinear:
    """``base + scale sum_i w_i m_i d_i / p_i``, p_i rising with magnitude within each row.

    `merging.sparsify.magprune` has the formula of p.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617.
    """

    normalize: bool = False
    rescale: bool = True
    seed: int = 0

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Weight, density and epsilon (half the window of probabilities) per expert, one scale."""
        return (
            WEIGHT,
            DENSITY,
            Knob("epsilon", low=0.0, high=1.0, start=0.1, scale=0.05),
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
            magprune(
                delta,
                density,
                epsilon,
                generator(self.seed, expert, slot.name),
                rescale=self.rescale,
            )
            for delta, density, epsilon, expert in zip(
                inputs.deltas, each["density"], each["epsilon"], inputs.experts, strict=True
            )
        ]
        return add_sum(base, inputs, kept, normalize=self.normalize)
