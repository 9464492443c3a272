"""DARE with TIES: random drop and rescale, then sign election."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import Majority, add_consensus, check_majority
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import drop


@dataclass(frozen=True)
class DareTies(RuledMethod):
    """Drops and rescales every delta at random, then elects signs and merges what agrees, as TIES.

    The mean over experts is taken where an entry survived, so it is unbiased for one expert only;
    ``normalize=False`` sums instead.

    Args:
        majority: ``mass`` elects the sign of the sum, ``count`` the sign of most experts.
        normalize: divide by ``sum |w_i|`` over the experts that agree; otherwise a plain sum.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Yu et al. 2024, Language models are super Mario (DARE), arXiv:2311.03099; signs:
    Yadav et al. 2023, TIES-Merging, arXiv:2306.01708.
    """

    majority: Majority = "mass"
    normalize: bool = True
    rescale: bool = True
    seed: int = 0

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
            drop(row, density, self.seed, rescale=self.rescale)
            for row, density in zip(inputs.rows, inputs.each["density"], strict=True)
        ]
        return add_consensus(inputs, kept, majority=self.majority, normalize=self.normalize)
