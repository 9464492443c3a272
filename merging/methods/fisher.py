"""Fisher-weighted averaging: every expert counts most where its likelihood is most curved."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.consensus import weighted_sum
from merging.rules.knobs import WEIGHT, read
from merging.rules.threads import one_thread
from merging.statistics_files import Statistics, digests_of


@dataclass(frozen=True)
class Fisher:
    """``base + sum_i w_i F_i d_i / sum_i w_i F_i``, entry by entry; F_i is never below the floor.

    F_i is the diagonal of expert i's Fisher information on its own data: with it, the average
    maximises the product of Gaussian (Laplace) approximations of the experts' posteriors. In
    plain torch: tests/merging/methods/test_fisher.py::test_published_formula.

    Args:
        statistics: directory that ``evomerge statistics kind=fisher`` filled.
        floor: smallest F, as a fraction of the tensor's mean over all experts; at least 0. Where
            no expert's F reaches it, the result is the weighted average.
        digests: file name to sha256 of the statistics, kept in recipes so that a rebuild with
            others is refused; None: as the files are now.

    Source: Matena & Raffel 2022, Merging models with Fisher-weighted averaging, eq. (1) and
    section 2, arXiv:2111.09832. Their floor is the absolute 1e-6; ours is relative, so that the
    unit of the likelihood (longer texts, more classes) changes nothing.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (replace(WEIGHT, low=0.0),)  # lambda of eq. (1)
    statistics: str
    floor: float = 1e-6
    digests: Mapping[str, str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.floor < float("inf"):
            raise ValueError(f"fisher: floor is {self.floor}, expected a number of at least 0")
        if self.digests is None:
            object.__setattr__(self, "digests", digests_of(Path(self.statistics), "fisher"))

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the weighted average; see `MergeMethod.merge`.

        Raises:
            MergeError: an argument is refused, or all weights are zero.
            StatisticsError: an expert's statistics are missing or do not fit.
        """
        inputs = read(self, slot, base, deltas, knobs)
        shares = inputs.shares()
        fishers = [self._files.read(expert, slot.name, base.shape) for expert in inputs.experts]
        if inputs.unmoved:
            return base.clone()
        floor = self.floor * sum(float(f.double().mean()) for f in fishers) / len(fishers)
        exact = torch.float32 if base.device.type == "mps" else torch.float64
        product = torch.zeros(base.shape, dtype=exact, device=base.device)
        total = torch.zeros_like(product)
        for fisher, delta, share in zip(fishers, inputs.deltas, shares, strict=True):
            mass = fisher.to(device=base.device, dtype=exact).clamp_(min=floor).mul_(share)
            product.addcmul_(mass, delta.to(exact))  # sum_i w_i F_i d_i
            total.add_(mass)  # sum_i w_i F_i
        average = weighted_sum(inputs.deltas, shares)
        divided = (product / total).to(base.dtype)  # eq. (1)
        return base + torch.where(total > 0, divided, average)

    @cached_property
    def _files(self) -> Statistics:
        return Statistics(Path(self.statistics), "fisher", self.digests or {})
