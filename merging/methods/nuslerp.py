"""NuSLERP: spherical interpolation between two task vectors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.knobs import WEIGHT, read
from merging.rules.spherical import slerp
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class NuSlerp:
    """``base + slerp(d_1, d_2, t)`` with ``t = w_2 / (w_1 + w_2)``; takes exactly two experts.

    In plain numpy: tests/merging/methods/test_method_references.py::nuslerp.

    Args:
        flatten: a tensor is one vector; otherwise its rows or columns are.
        row_wise: without `flatten`: vectors lie along the last dimension, not along the first.

    Source: mergekit's method ``nuslerp`` (C. Goddard); its ``nuslerp_row_wise`` is the opposite of
        `row_wise`, which `merging.mergekit_yaml` translates.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT,)
    flatten: bool = True
    row_wise: bool = False

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the interpolated task vector; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs, least=2, most=2)
        if inputs.unmoved:
            return base.clone()
        _, t = inputs.shares()
        first, second = inputs.deltas
        dim = None if self.flatten or base.dim() == 0 else -1 if self.row_wise else 0
        return base + slerp(first, second, t, dim)
