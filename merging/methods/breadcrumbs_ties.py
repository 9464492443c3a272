"""Model breadcrumbs with the sign election of TIES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import Majority, add_consensus, check_majority
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import band


@dataclass(frozen=True)
class BreadcrumbsTies(RuledMethod):
    """Cuts the largest and smallest entries of every delta, then merges what agrees, as TIES.

    Args:
        majority: ``mass`` elects the sign of the sum, ``count`` the sign of most experts.
        normalize: divide by ``sum |w_i|`` over the experts that agree; otherwise a plain sum.

    Source: Davari & Belilovsky 2023, Model breadcrumbs, arXiv:2312.06795. The masks are per
    tensor, and the density says what is left after both cuts, as in mergekit. Signs:
    Yadav et al. 2023, arXiv:2306.01708.
    """

    majority: Majority = "mass"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_majority(self.majority)

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Weight, density and gamma (share of outliers removed) per expert, one scale."""
        return (
            WEIGHT,
            DENSITY,
            Knob("gamma", low=0.0, high=1.0, start=0.01, scale=0.01),
            scale_knob(self.normalize),
        )

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs)
        each = inputs.each
        kept = [
            band(row, density, gamma)
            for row, density, gamma in zip(
                inputs.rows, each["density"], each["gamma"], strict=True
            )
        ]
        return add_consensus(inputs, kept, majority=self.majority, normalize=self.normalize)
