"""Spherical interpolation between two experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ExpertTensor, ParameterStack, cached
from merging.rules.consensus import combination, unchanged
from merging.rules.knobs import WEIGHT, read_rows
from merging.rules.spherical import Arc, arc
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class Slerp(RuledMethod):
    """``slerp(theta_1, theta_2, t)`` with ``t = w_2 / (w_1 + w_2)``, each tensor one vector.

    Takes exactly two experts. The endpoints keep their lengths, as is usual for weights. In plain
    numpy: tests/merging/methods/test_method_references.py::slerp_whole.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT,)

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the interpolated weights; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs, least=2, most=2)
        if inputs.unmoved:
            return unchanged(inputs)
        _, t = inputs.shares()
        circle = cached(inputs.rows, "arc", 0, lambda: _arc(*inputs.rows))
        left, right = (float(factor) for factor in circle.at(t))
        # sin((1-t) O)/sin(O) theta_1 + sin(t O)/sin(O) theta_2
        return combination(inputs, (left, right), left + right)


def _arc(first: ExpertTensor, second: ExpertTensor) -> Arc:
    threads = torch.get_num_threads() if first.stored.is_cpu else 1
    with one_thread():  # torch adds up in as many parts as there are threads
        return arc(first.own, second.own, threads=threads)
