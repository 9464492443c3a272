"""Model breadcrumbs: sums of task vectors without outliers and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import add_sum
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import band


@dataclass(frozen=True)
class Breadcrumbs(RuledMethod):
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

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`.

        Raises:
            MergeError: an argument is refused, or weights to be normalised sum to zero.
        """
        inputs = read_rows(self, tensors, knobs)
        each = inputs.each
        kept = [
            band(row, density, gamma)
            for row, density, gamma in zip(
                inputs.rows, each["density"], each["gamma"], strict=True
            )
        ]
        return add_sum(inputs, kept, normalize=self.normalize)
