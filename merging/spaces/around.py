"""Around a merge: more or less of what it changed, and more or less of every expert."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping
from merging.method import Knob
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import Coefficients, MergePlan, Plan
from merging.spaces.axes import check
from merging.spaces.coefficients import knob_axes
from merging.spaces.vectors import VectorGenomes
from merging.weights import LazyWeights, Weights

_KNOBS = (
    Knob("start", start=1.0, per_expert=False, scale=0.3),
    Knob("weight", start=0.0, scale=0.1),
)


@dataclass(frozen=True)
class AroundPlan:
    """``base + s_g (start - base) + (there - base)``, with a number s for every group g.

    Args:
        there: task arithmetic, whose groups these are.
        scales: s of every group.
    """

    start: Plan
    there: MergePlan
    scales: Mapping[str, float]

    @property
    def name(self) -> str:
        """The start's name and that of the sum's method."""
        return f"{self.start.name} + {self.there.name}"

    @property
    def named_experts(self) -> frozenset[str] | None:
        """Those that one of the plans names; None: one of them may read all of the pool."""
        named = self.start.named_experts
        return None if named is None else named | self.there.named_experts

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> Weights:
        """Returns the parameters, computed when read, cast once; errors as of the plans."""
        return _AroundWeights(self, _Changes(self.start, pool), pool, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `plan_from_description`."""
        return {
            "kind": "around",
            "start": self.start.describe(),
            "there": self.there.describe(),
            "scales": dict(self.scales),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], start: Plan) -> "AroundPlan":
        """Returns the plan that `describe` wrote; raises ValueError, naming a wrong key."""
        for key in ("there", "scales"):
            if not isinstance(description.get(key), Mapping):
                raise ValueError(f"recipe: {key!r} must be a dict, got {description.get(key)!r}")
        there = MergePlan.from_description(description["there"])
        return cls(start, there, dict(description["scales"]))


class AroundSpace(VectorGenomes):
    """Genome: for every group how much of the start's change there is, and of every expert's.

    The first genome is the start, 1 and 0 for each expert. What the start changes in the base is
    held: as much memory as one model in float32.
    """

    def __init__(
        self,
        pool: ExpertPool,
        start: Plan,
        grouping: Grouping,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pool, self.start, self.grouping, self.dtype = pool, start, grouping, dtype
        self.groups = tuple(dict.fromkeys(grouping.assign(pool.names).values()))
        self.axes = knob_axes(_KNOBS, self.groups, pool.expert_names)
        self._changes: _Changes | None = None

    def plan(self, genome: Vector) -> Plan:
        """Returns the merge of a genome; raises ValueError where a number lies off its axis."""
        check(self.axes, genome)
        if np.array_equal(genome, self.first()):
            return self.start
        experts = self.pool.expert_names
        rows = dict(zip(self.groups, genome.reshape(len(self.groups), -1).tolist(), strict=True))
        sums: Coefficients = {
            group: {"weight": dict(zip(experts, weights, strict=True)), "scale": 1.0}
            for group, (_, *weights) in rows.items()
        }
        there = MergePlan(TaskArithmetic(), self.grouping, experts, sums)
        return AroundPlan(self.start, there, {group: row[0] for group, row in rows.items()})

    def decode(self, genome: Vector) -> Weights:
        """Returns the weights of `genome`; they are those of `plan`, bit for bit."""
        plan = self.plan(genome)
        if not isinstance(plan, AroundPlan):
            return plan.weights(self.pool, dtype=self.dtype)
        if self._changes is None:
            self._changes = _Changes(self.start, self.pool, keep=True)
        return _AroundWeights(plan, self._changes, self.pool, self.dtype)


class _Changes:
    """start - base, ``(*shape)`` float32 per tensor, kept where it is read again and again."""

    def __init__(self, start: Plan, pool: ExpertPool, *, keep: bool = False) -> None:
        self._start, self._base = start.weights(pool, dtype=torch.float32), pool.base_weights()
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def __getitem__(self, name: str) -> Tensor:
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        change = self._start[name] - self._base[name].float()
        if self._kept is not None:
            self._kept[name] = change
        return change


class _AroundWeights(LazyWeights):
    """A sum of experts and a share of a merge; every read computes one parameter."""

    def __init__(
        self, plan: AroundPlan, changes: _Changes, pool: ExpertPool, dtype: torch.dtype | None
    ) -> None:
        self._there = plan.there.weights(pool, dtype=torch.float32)
        super().__init__(self._there)
        groups = plan.there.grouping.assign(pool.names)
        self._scales = {name: plan.scales[group] for name, group in groups.items()}
        self._changes, self._pool, self._dtype = changes, pool, dtype

    def _tensor(self, name: str) -> Tensor:
        # there + s_g (start - base)
        tensor = self._there[name].add(self._changes[name], alpha=self._scales[name])
        return tensor.to(self._dtype or self._pool.base.dtype(name))
