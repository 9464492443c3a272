"""TSV-M: task singular vectors, made orthogonal between experts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.consensus import weighted_sum
from merging.rules.knobs import SCALE, read
from merging.rules.spectral import polar_factor, thin_svd
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class TsvM:
    """``base + scale U S V``: every expert's leading singular triplets, decorrelated.

    Of each matrix the ``min(shape) / experts`` leading triplets are kept (rounded down, at least
    one), concatenated over the experts, and the left and right vectors replaced by the nearest
    orthonormal ones. Tensors that are no matrix get the mean of the deltas. In plain numpy:
    tests/merging/methods/test_method_references.py::tsv_m.

    Source: Gargiulo et al. 2025, Task singular vectors (TSV-Merge), arXiv:2412.00081.
    Singular values below rounding are left out here, as their vectors are arbitrary: LoRA experts
    have many of them.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (SCALE,)

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the decorrelated task vectors; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs)
        if inputs.unmoved:
            return base.clone()
        count, scale = len(inputs.deltas), inputs.shared["scale"]
        if base.dim() != 2:
            return base.add(weighted_sum(inputs.deltas, [1 / count] * count), alpha=scale)
        share = max(1, min(base.shape) // count)
        parts = [thin_svd(delta, share) for delta in inputs.deltas]  # U_i S_i V_i = d_i, truncated
        left = polar_factor(torch.cat([u for u, _, _ in parts], dim=1))  # U ~ [U_1 | ... | U_n]
        right = polar_factor(torch.cat([v for _, _, v in parts]))
        values = torch.cat([s for _, s, _ in parts])
        # base + scale U S V
        return base.add((left * values) @ right, alpha=scale)
