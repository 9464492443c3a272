"""Any vector space, moved so that its first genome is a given point: any start for any search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.plan import Plan
from merging.spaces.vectors import VectorGenomes, VectorSpace
from merging.weights import Weights


@dataclass(frozen=True)
class DisplacedPlan:
    """``start + (there - here)``: what leads from one merge to another, done from a third.

    Args:
        start: where the move begins.
        here: the merge that the move leads away from.
        there: the merge that it leads to.
    """

    start: Plan
    here: Plan
    there: Plan

    @property
    def name(self) -> str:
        """The start's name and that of the move's method."""
        return f"{self.start.name} + {self.there.name}"

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> Weights:
        """Returns the parameters, computed when read in float32, cast once.

        Args:
            pool: the experts of all three plans.
            dtype: of the result; None: each parameter's dtype in the base.

        Raises:
            MergeError: as the plans raise.
        """
        offset = _Offset(*(p.weights(pool, dtype=torch.float32) for p in (self.start, self.here)))
        return _Moved(self.there.weights(pool, dtype=torch.float32), offset, pool, dtype)

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

    Args:
        inner: the space whose axes are searched.
        start: the point to start from: a static merge, a recipe, an expert.
        dtype: of decoded weights; None: the base's.
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
            fixed = (p.weights(self.pool, dtype=torch.float32) for p in (self.start, self._here))
            self._offset = _Offset(*fixed, keep=True)
        there = plan.there.weights(self.pool, dtype=torch.float32)
        return _Moved(there, self._offset, self.pool, self.dtype)

    def canonical(self, genome: Vector) -> Vector:
        """Returns the inner space's one genome for all that decode to the same weights."""
        return self.inner.canonical(genome)


class _Offset:
    """start - here, ``(*shape)`` float32 per tensor, kept where it is read again and again."""

    def __init__(self, start: Weights, here: Weights, *, keep: bool = False) -> None:
        self._start, self._here, self._keep = start, here, keep
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        offset = self._start[name] - self._here[name]
        if self._keep:
            self._kept[name] = offset
        return offset


class _Moved(Mapping[str, Tensor]):
    """A merge plus an offset; every read computes one parameter."""

    def __init__(
        self, there: Weights, offset: _Offset, pool: ExpertPool, dtype: torch.dtype | None
    ) -> None:
        self._there, self._offset, self._pool, self._dtype = there, offset, pool, dtype

    def __getitem__(self, name: str) -> Tensor:
        whole = self._there[name] + self._offset[name]
        return whole.to(self._dtype or self._pool.base.dtype(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._there)

    def __len__(self) -> int:
        return len(self._there)
