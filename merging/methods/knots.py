"""KnOTS: experts aligned in one basis before another method merges them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from merging.method import Knob, MergeMethod, Slot
from merging.methods.ties import Ties
from merging.rules.knobs import read
from merging.rules.spectral import low_rank_svd
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class Knots:
    """Merges ``S V_i`` of ``[d_1 | ... | d_n] = U S [V_1 | ... | V_n]`` and multiplies by U.

    The experts' deltas of a matrix share the columns of U; their coordinates ``S V_i = U^T d_i``,
    ``(rank, in)``, are what `inner` merges, over a base of zero. LoRA deltas are exact products
    of low rank, and only as many coordinates are computed. Tensors that are no matrix are merged
    by `inner` as they are. Singular values below rounding are left out. In plain numpy:
    tests/merging/methods/test_method_references.py::knots.

    Args:
        inner: method that merges the coordinates; its knobs are this method's.

    Source: Stoica et al. 2024, Model merging with SVD to tie the Knots, section 4,
    arXiv 2410.19735; `inner` at its best there: TIES.
    """

    inner: MergeMethod = field(default_factory=Ties)

    def __post_init__(self) -> None:
        if getattr(self.inner, "trim", "tensor") != "tensor":
            raise ValueError(
                "knots: inner trims over the whole model, but coordinates are those of one "
                "tensor: set inner.trim=tensor"
            )

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """Those of `inner`."""
        return self.inner.knobs

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the merged coordinates times U; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs)
        if inputs.unmoved:
            return base.clone()
        ordered = Slot(slot.name, inputs.experts)
        numbers: dict[str, Any] = {**inputs.per_expert, **inputs.shared}
        given = {
            name: torch.tensor(value, dtype=base.dtype).to(base.device)
            for name, value in numbers.items()
        }
        if base.dim() != 2:
            return self.inner.merge(ordered, base, torch.stack(inputs.deltas), given)
        # U S [V_1 | ... | V_n] = [d_1 | ... | d_n]
        basis, _, _ = low_rank_svd(torch.cat(inputs.deltas, dim=1))  # (out, rank)
        coordinates = torch.stack([basis.T @ delta for delta in inputs.deltas])  # S V_i = U^T d_i
        zero = torch.zeros_like(coordinates[0])
        return base + basis @ self.inner.merge(ordered, zero, coordinates, given)
