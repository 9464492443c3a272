"""Merge methods that sparsify every delta by itself and then combine what is left."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ExpertTensor, ParameterStack
from merging.rules.consensus import (
    Majority,
    check_majority,
    disjoint_mean,
    elect_signs,
    sparse_sum,
)
from merging.rules.knobs import DENSITY, WEIGHT, Inputs, read_rows, scale_knob
from merging.rules.sparsify import Sparsifier


class Sparsified(RuledMethod):
    """``base + scale combine_i(w_i m_i d_i)`` with a mask m_i for every expert.

    Attributes:
        expert_knobs: the knobs per expert, which `sparsifier` reads.
        normalize: whether the combination is a mean.
    """

    expert_knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT, DENSITY)
    normalize: bool

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Those per expert, and one scale."""
        return (*self.expert_knobs, scale_knob(self.normalize))

    @abstractmethod
    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns the mask of an expert's delta, from the expert's own knob values."""

    @abstractmethod
    def combine(self, inputs: Inputs, sparsifiers: Sequence[Sparsifier]) -> Rule:
        """Returns the rule that combines the sparsified deltas."""

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the combined task vectors; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs)
        per_expert = inputs.per_expert
        sparsifiers = [
            self.sparsifier(row, dict(zip(per_expert, values, strict=True)))
            for row, *values in zip(inputs.rows, *per_expert.values(), strict=True)
        ]
        return self.combine(inputs, sparsifiers)


@dataclass(frozen=True)
class SparsifiedSum(Sparsified):
    """Task arithmetic of sparsified deltas: ``base + scale sum_i w_i m_i d_i``.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1. Weights that sum
            to zero are then refused.
    """

    normalize: bool = False

    def combine(self, inputs: Inputs, sparsifiers: Sequence[Sparsifier]) -> Rule:
        """Returns the sum; see `merging.rules.consensus.sparse_sum`."""
        return sparse_sum(inputs, sparsifiers, normalize=self.normalize)


@dataclass(frozen=True)
class SparsifiedConsensus(Sparsified):
    """The sign election and disjoint mean of TIES, of sparsified deltas.

    Args:
        majority: ``mass`` elects the sign of the sum, ``count`` the sign of most experts.
        normalize: divide by ``sum |w_i|`` over the experts that agree; otherwise a plain sum.
    """

    majority: Majority = "mass"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_majority(self.majority)

    def combine(self, inputs: Inputs, sparsifiers: Sequence[Sparsifier]) -> Rule:
        """Returns the rule that elects signs and takes the mean of what has them."""
        signs = elect_signs(inputs, sparsifiers, self.majority)  # s = sign(sum_i w_i d_i)
        # base + scale mean_{i: sign(w_i d_i) = s} w_i d_i
        return disjoint_mean(inputs, signs, normalize=self.normalize)
