"""Any vector space, moved so that its first genome is a given point: any start for any search."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.plan import Plan
from merging.spaces.vectors import VectorGenomes, VectorSpace
from merging.weights import LazyWeights, Weights


@dataclass(frozen=True)
class DisplacedPlan:
    """``start + (there - here)``: the move from one merge to another, made from a third."""

    start: Plan
    here: Plan
    there: Plan

    @property
    def name(self) -> str:
        """The start's name and that of the move's method."""
        return f"{self.start.name} + {self.there.name}"

    @property
    def named_experts(self) -> frozenset[str] | None:
        """Those that one of the plans names; None: one of them may read all of the pool."""
        named = [plan.named_experts for plan in (self.start, self.here, self.there)]
        return None if None in named else frozenset().union(*filter(None, named))

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> Weights:
        """Returns the parameters, computed when read, cast once; errors as of the plans."""
        offset = _Offset((self.start, self.here), pool)
        return _DisplacedWeights(self.there, offset, pool, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `plan_from_description`."""
        return {
            "kind": "displaced",
            "start": self.start.describe(),
            "here": self.here.describe(),
            "there": self.there.describe(),
        }


class DisplacedSpace(VectorGenomes):
    """A vector space whose first genome is `start` and whose moves are those of `inner`.

    Genome g is ``start + inner(g) - inner(first)``. The difference of the two fixed points is
    held: as much memory as one model in float32.
    """

    def __init__(
        self, inner: VectorSpace, start: Plan, *, dtype: torch.dtype | None = None
    ) -> None:
        self.inner, self.start, self.dtype = inner, start, dtype
        self.pool, self.axes = inner.pool, inner.axes
        self._here = inner.plan(inner.first())
        self._offset: _Offset | None = None

    def plan(self, genome: Vector) -> Plan:
        """Returns the plan of `genome`, ``(axes,)``; errors as those of the inner space."""
        there = self.inner.plan(genome)
        return self.start if there == self._here else DisplacedPlan(self.start, self._here, there)

    def decode(self, genome: Vector) -> Weights:
        """Returns the weights of `genome`; they are those of `plan`, bit for bit."""
        plan = self.plan(genome)
        if not isinstance(plan, DisplacedPlan):
            return plan.weights(self.pool, dtype=self.dtype)
        if self._offset is None:
            self._offset = _Offset((self.start, self._here), self.pool, keep=True)
        return _DisplacedWeights(plan.there, self._offset, self.pool, self.dtype)

    def canonical(self, genome: Vector) -> Vector:
        """Returns the inner space's one genome for all that decode to the same weights."""
        return self.inner.canonical(genome)


class _Offset:
    """start - here, ``(*shape)`` float32 per tensor, kept where it is read again and again."""

    def __init__(self, plans: Iterable[Plan], pool: ExpertPool, *, keep: bool = False) -> None:
        self._start, self._here = (p.weights(pool, dtype=torch.float32) for p in plans)
        self._kept: dict[str, Tensor] | None = {} if keep else None

    def __getitem__(self, name: str) -> Tensor:
        if self._kept is not None and name in self._kept:
            return self._kept[name]
        offset = self._start[name] - self._here[name]
        if self._kept is not None:
            self._kept[name] = offset
        return offset


class _DisplacedWeights(LazyWeights):
    """A merge plus an offset; every read computes one parameter."""

    def __init__(
        self, there: Plan, offset: _Offset, pool: ExpertPool, dtype: torch.dtype | None
    ) -> None:
        self._there = there.weights(pool, dtype=torch.float32)
        super().__init__(self._there)
        self._offset, self._pool, self._dtype = offset, pool, dtype

    def _tensor(self, name: str) -> Tensor:
        tensor = self._there[name] + self._offset[name]  # there + (start - here)
        return tensor.to(self._dtype or self._pool.base.dtype(name))
