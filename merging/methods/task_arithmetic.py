"""Task arithmetic: scaled sum of the task vectors."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.consensus import sparse_sum
from merging.rules.knobs import WEIGHT, read_rows, scale_knob
from merging.rules.sparsify import KEEP_ALL


@dataclass(frozen=True)
class TaskArithmetic(RuledMethod):
    """``base + scale sum_i w_i d_i``.

    At the start values every weight is 1 and the scale 0.3, which is in the range that the paper
    finds best for adding tasks; a uniform mean of n experts is the scale 1/n. In plain numpy:
    tests/merging/methods/test_method_references.py::total.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1.

    Source: Ilharco et al. 2023, Editing models with task arithmetic, section 4, arXiv:2212.04089.
    """

    normalize: bool = False

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """One weight per expert, one scale."""
        return (WEIGHT, scale_knob(self.normalize))

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the sum; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs)
        masks = [KEEP_ALL] * len(inputs.rows)
        return sparse_sum(inputs, masks, normalize=self.normalize)  # base + scale sum_i w_i d_i
