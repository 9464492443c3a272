"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.consensus import Majority, add_consensus, check_majority
from merging.knobs import DENSITY, WEIGHT, read, scale_knob
from merging.method import Knob, Slot
from merging.sparsify import trim


@dataclass(frozen=True)
class Ties:
    """Trims every delta to its largest magnitudes, elects a sign per entry, averages what has it.

    ``base + scale mean_{i: sign(w_i d_i) = s} w_i d_i``, ``s = sign(sum_i w_i d_i)``, after
    trimming to ``round(density n)`` entries. The paper keeps 20 % (density 0.2), scale 1. Entries
    whose signs balance exactly stay at the base.

    Args:
        majority: ``mass`` elects the sign of the sum, ``count`` the sign of most experts.
        normalize: divide by ``sum |w_i|`` over the experts that agree; otherwise a plain sum.

    Source: Yadav et al. 2023, TIES-Merging, algorithm 1, arXiv:2306.01708.
    """

    majority: Majority = "mass"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_majority(self.majority)

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Weight and density per expert, one scale."""
        return (WEIGHT, DENSITY, scale_knob(self.normalize))

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the merged task vectors; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs)
        if inputs.unmoved:
            return base.clone()
        each = inputs.each
        kept = [
            trim(delta, density)
            for delta, density in zip(inputs.deltas, each["density"], strict=True)
        ]
        return add_consensus(base, inputs, kept, majority=self.majority, normalize=self.normalize)
