"""DELLA without sign election: magnitude-aware drop, then task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import add_sum
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import magprune


@dataclass(frozen=True)
class DellaLinear(RuledMethod):
    """``base + scale sum_i w_i m_i d_i / p_i``, p_i rising with magnitude within each row.

    `merging.rules.sparsify.magprune` has the formula of p.

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

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`.

        Raises:
            MergeError: an argument is refused, or weights to be normalised sum to zero.
        """
        inputs = read_rows(self, tensors, knobs)
        each = inputs.each
        kept = [
            magprune(row, density, epsilon, self.seed, rescale=self.rescale)
            for row, density, epsilon in zip(
                inputs.rows, each["density"], each["epsilon"], strict=True
            )
        ]
        return add_sum(inputs, kept, normalize=self.normalize)
