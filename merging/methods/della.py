"""DELLA: magnitude-aware random drop, then sign election."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import Majority, add_consensus, check_majority
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import magprune


@dataclass(frozen=True)
class Della(RuledMethod):
    """Drops and rescales entries by the rank of their magnitude, then merges what agrees, as TIES.

    `merging.rules.sparsify.magprune` has the probabilities.

    Args:
        majority: ``mass`` elects the sign of the sum, ``count`` the sign of most experts.
        normalize: divide by ``sum |w_i|`` over the experts that agree; otherwise a plain sum.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617.
    """

    majority: Majority = "mass"
    normalize: bool = True
    rescale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_majority(self.majority)

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Weight, density and epsilon (half the window of probabilities) per expert, one scale."""
        return (
            WEIGHT,
            DENSITY,
            Knob("epsilon", low=0.0, high=1.0, start=0.1, scale=0.05),
            scale_knob(self.normalize),
        )

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs)
        each = inputs.each
        kept = [
            magprune(row, density, epsilon, self.seed, rescale=self.rescale)
            for row, density, epsilon in zip(
                inputs.rows, each["density"], each["epsilon"], strict=True
            )
        ]
        return add_consensus(inputs, kept, majority=self.majority, normalize=self.normalize)
