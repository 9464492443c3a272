"""The list of merge methods that the contract tests run, and how to make up their arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.method import MergeMethod, Slot
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
from merging.methods.iso_c import IsoC
from merging.methods.karcher import Karcher
from merging.methods.knots import Knots
from merging.methods.linear import Linear
from merging.methods.model_stock import ModelStock
from merging.methods.multi_slerp import MultiSlerp
from merging.methods.nearswap import Nearswap
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.methods.tsv_m import TsvM

METHODS: dict[MergeMethod, int] = {  # a method at its defaults: how many experts to try it with
    Breadcrumbs(): 3,
    BreadcrumbsTies(): 3,
    DareLinear(): 3,
    DareTies(): 3,
    Della(): 3,
    DellaLinear(): 3,
    IsoC(): 3,
    Karcher(): 3,
    Knots(): 3,
    Linear(): 3,
    ModelStock(): 3,
    MultiSlerp(): 3,
    Nearswap(): 1,
    NuSlerp(): 2,
    Sce(): 3,
    Slerp(): 2,
    TaskArithmetic(): 3,
    Ties(): 3,
    TsvM(): 3,
}

WITH_STATISTICS = {
    "fisher",
    "regmean",
}  # they read files: tests/merging/methods/statistics_cases.py

SHAPES = [(), (0,), (1,), (3,), (3, 0), (1, 1), (4, 6), (7, 3), (2, 3, 4)]


def name_of(method: MergeMethod) -> str:
    return type(method).__module__.rpartition(".")[2]


@dataclass(frozen=True)
class Problem:
    """Arguments of one merge."""

    slot: Slot
    base: Tensor
    deltas: Tensor
    knobs: dict[str, Tensor]

    def permuted(self, order: list[int]) -> Problem:
        experts = tuple(self.slot.experts[i] for i in order)
        knobs = {k: v[order] if v.dim() else v for k, v in self.knobs.items()}
        return Problem(Slot(self.slot.name, experts), self.base, self.deltas[order], knobs)

    def but(self, **knobs: float | list[float]) -> Problem:
        changed = {k: torch.tensor(v, dtype=self.base.dtype) for k, v in knobs.items()}
        return Problem(self.slot, self.base, self.deltas, self.knobs | changed)


def start_knobs(method: MergeMethod, experts: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        knob.name: torch.full((experts,) if knob.per_expert else (), knob.start, dtype=dtype)
        for knob in method.knobs
    }


def random_knobs(
    method: MergeMethod, experts: int, dtype: torch.dtype, seed: int
) -> dict[str, Tensor]:
    """Positive weights and scales, densities and the like over their whole range."""
    noise = torch.Generator().manual_seed(seed)
    knobs = {}
    for knob in method.knobs:
        low, high = (
            max(knob.low, 0.1 if knob.name in ("weight", "scale") else 0),
            min(knob.high, 2),
        )
        draw = torch.rand((experts,) if knob.per_expert else (), generator=noise)
        knobs[knob.name] = (low + (high - low) * draw).to(dtype)
    return knobs


def random_problem(
    method: MergeMethod,
    shape: tuple[int, ...],
    seed: int,
    *,
    experts: int | None = None,
    dtype: torch.dtype = torch.float64,
    size: float = 0.1,
    knobs: Mapping[str, Tensor] | None = None,
) -> Problem:
    """A standard normal base and deltas of standard deviation `size`."""
    count = experts or METHODS.get(method, 3)
    noise = torch.Generator().manual_seed(seed)
    # drawn in float32, so that every dtype sees the same numbers
    base = torch.randn(shape, generator=noise).to(dtype)
    deltas = torch.randn((count, *shape), generator=noise).mul_(size).to(dtype)
    identities = tuple(f"{(7 * i + seed) % 10}-expert-{i}" for i in range(count))
    chosen = dict(knobs) if knobs is not None else random_knobs(method, count, dtype, seed)
    return Problem(Slot("layers.0.weight", identities), base, deltas, chosen)


def merge(method: MergeMethod, problem: Problem) -> Tensor:
    return method.merge(problem.slot, problem.base, problem.deltas, problem.knobs)
