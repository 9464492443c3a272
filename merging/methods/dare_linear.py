"""DARE: random drop and rescale, then task arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import add_sum
from merging.rules.knobs import DENSITY, WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import drop


@dataclass(frozen=True)
class DareLinear(RuledMethod):
    """``base + scale sum_i w_i m_i d_i / p_i``, every entry of m_i 1 with probability p_i.

    p_i is the density.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Yu et al. 2024, Language models are super Mario (DARE), arXiv:2311.03099.
    """

    normalize: bool = False
    rescale: bool = True
    seed: int = 0

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Weight and density per expert, one scale."""
        return (WEIGHT, DENSITY, scale_knob(self.normalize))

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`.

        Raises:
            MergeError: an argument is refused, or weights to be normalised sum to zero.
        """
        inputs = read_rows(self, tensors, knobs)
        kept = [
            drop(row, density, self.seed, rescale=self.rescale)
            for row, density in zip(inputs.rows, inputs.each["density"], strict=True)
        ]
        return add_sum(inputs, kept, normalize=self.normalize)
