"""Iso-C: the sum of the task vectors with an isotropic spectrum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.consensus import weighted_sum
from merging.rules.knobs import SCALE, read
from merging.rules.spectral import thin_svd
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class IsoC:
    """``base + scale mean(S) U V`` with ``U S V = sum_i d_i``, for every matrix.

    Tensors that are no matrix get the mean of the deltas. In plain numpy:
    tests/merging/methods/test_method_references.py::iso_c.

    Source: Marczak et al. 2025, No task left behind (Iso-C), arXiv:2502.04959. Singular values
    below rounding stay out of U, V and the mean, as their vectors are arbitrary.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (SCALE,)

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the flattened sum; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs)
        if inputs.unmoved:
            return base.clone()
        count, scale = len(inputs.deltas), inputs.shared["scale"]
        total = weighted_sum(inputs.deltas, [1.0] * count)
        if base.dim() != 2:
            return base.add(total, alpha=scale / count)
        left, values, right = thin_svd(total)  # U S V = sum_i d_i
        if not len(values):
            return base.clone()
        # base + scale mean(S) U V
        return base.add(left @ right, alpha=scale * float(values.mean()))
