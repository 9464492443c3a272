"""TIES: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import Majority, add_consensus, check_majority
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import trim


@dataclass(frozen=True)
class Ties(RuledMethod):
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

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs)
        kept = [
            trim(row, density)
            for row, density in zip(inputs.rows, inputs.each["density"], strict=True)
        ]
        return add_consensus(inputs, kept, majority=self.majority, normalize=self.normalize)
