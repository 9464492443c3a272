"""Weighted average of the experts (model soup)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import combination, unchanged
from merging.rules.knobs import WEIGHT, read_rows


@dataclass(frozen=True)
class Linear(RuledMethod):
    """``sum_i w_i theta_i / sum_i w_i``, which is ``base + sum_i w_i d_i / sum_i w_i``.

    In plain numpy: tests/merging/methods/test_method_references.py::soup.

    Args:
        normalize: divide by the sum of the weights; without it the result is
            ``sum_i w_i theta_i``, so that weights of 1 add whole models up.

    Source: Wortsman et al. 2022, Model soups (the uniform soup, with weights), arXiv:2203.05482.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT,)
    normalize: bool = True

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the average; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs)
        weights = inputs.per_expert["weight"]
        if not self.normalize:
            return combination(inputs, weights, math.fsum(weights))  # sum_i w_i theta_i
        if inputs.unmoved:
            return unchanged(inputs)
        return combination(inputs, inputs.shares(), 1.0)  # sum_i w_i theta_i / sum_i w_i
