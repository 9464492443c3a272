"""Replays lineages: the weights of an individual, bred anew whenever they are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from merging.arrays import Matrix
from merging.checkpoints.experts import ExpertPool
from merging.lineages.crossover import Moments
from merging.lineages.lineage import (
    BASE_FOUNDER,
    Crossed,
    Founder,
    Lineage,
    Mutated,
    canonical,
    founders,
    lineage_from_json,
    lineage_to_json,
)
from merging.lineages.pedigree import Pedigree
from merging.lineages.slices import EntryRange, TensorSlice, tensor_slices
from merging.method import MergeError
from merging.paths.path import BASE, START
from merging.plan import Plan
from merging.weights import LazyWeights, Weights

_START_FOUNDER = Founder(START)
_SUMMED = 1024
"""Entries that are summed in one row: no sum is long enough for torch to share it out among
threads, whose number would show in its last bits."""


class Replay:
    """Computes individuals, one tensor at a time, in float32, from nothing but the founders.

    A tensor is bred block by block. A block of every ancestor that plays a part there is computed
    once and dropped after its last child, so that a read takes a few blocks beside one tensor of
    every founder. Operators that need lengths and angles (`CrossoverOperator.measures`) take one
    more walk through the tensor per generation of them; the numbers are kept, 24 bytes per tensor
    and individual, so that a child of known parents takes two walks.

    Args:
        start: the founder ``start``; None: there is none.
        keep: hold the start's tensors once read: as much memory as one model in float32.

    Raises:
        MergeError: an expert has the name of another founder; or as the start's plan raises.
    """

    def __init__(self, pool: ExpertPool, start: Plan | None, *, keep: bool = False) -> None:
        if taken := {BASE, START} & set(pool.expert_names):
            raise MergeError(
                f"an expert is named {min(taken)!r}, and so is another founder of lineages: "
                "rename it under experts"
            )
        self.pool, self.slices = pool, tensor_slices(pool)
        self._start = None if start is None else start.weights(pool, dtype=torch.float32)
        self._start_tensors: dict[str, Tensor] | None = {} if keep else None
        self._row = {name: row for row, name in enumerate(self.slices)}
        self._moments: dict[bytes, Matrix] = {}

    def check(self, lineage: Lineage) -> None:
        """Raises MergeError where the lineage descends from a founder that is unknown here."""
        known = [*self.pool.expert_names, *([] if self._start is None else [START]), BASE]
        for name in founders(lineage):
            if name not in known:
                raise MergeError(
                    f"the lineage descends from {name!r}, which is no founder here: "
                    f"expected {', '.join(known)}"
                )

    def tensor(self, name: str, pedigree: Pedigree) -> Tensor:
        """Returns one tensor of the individual, ``(*shape)`` float32, the caller's own."""
        tensor = self.slices[name]
        family = pedigree.in_tensor(tensor)
        last = len(family.individuals) - 1
        individual = family.individuals[last]
        from_start = individual == _START_FOUNDER
        origin = self._start_tensor(name) if from_start else self.pool.base_tensor(name)
        out = origin.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if from_start or individual == BASE_FOUNDER:
            return out
        vectors = self._vectors(name, family)
        moments = self._family_moments(tensor, family, vectors)
        for block, entries in _walk(tensor, family, vectors, moments, [last]):
            out.view(-1)[block.start : block.stop].add_(entries[last])  # base + task vector
        return out

    def _start_tensor(self, name: str) -> Tensor:
        """Returns a tensor of the start, float32; not to be changed."""
        assert self._start is not None
        if self._start_tensors is None:
            return self._start[name]
        if name not in self._start_tensors:
            self._start_tensors[name] = self._start[name]
        return self._start_tensors[name]

    def _vectors(self, name: str, family: Pedigree) -> dict[int, Tensor]:
        """Returns the founders' task vectors, flattened, ``(entries,)`` float32."""
        number = {
            individual.name: i
            for i, individual in enumerate(family.individuals)
            if isinstance(individual, Founder)
        }
        base, vectors = self.pool.base_tensor(name), {}
        if START in number:
            vectors[number[START]] = (self._start_tensor(name) - base.float()).reshape(-1)
        if BASE in number:
            vectors[number[BASE]] = torch.zeros(1, device=base.device).expand(base.numel())
        if experts := [expert for expert in self.pool.expert_names if expert in number]:
            deltas = self.pool.select(experts).deltas(name)
            for expert, delta in zip(experts, deltas, strict=True):
                vectors[number[expert]] = delta.reshape(-1)
        return vectors

    def _family_moments(
        self, tensor: TensorSlice, family: Pedigree, vectors: Mapping[int, Tensor]
    ) -> dict[int, Moments]:
        """Returns what every measuring operator of the family reads, by its child's number."""
        row = self._row[tensor.name]
        moments: dict[int, Moments] = {}
        missing = set()
        for i in family.measuring:
            table = self._moments.get(family.individuals[i].key)
            if table is None or math.isnan(table[row, 0]):
                missing.add(i)
            else:
                moments[i] = Moments(*table[row].tolist())
        while missing:
            ready = _ready(family, missing)
            for i, measured in _measure(tensor, family, vectors, moments, ready).items():
                moments[i] = measured
                unknown = np.full((len(self._row), len(measured)), math.nan)
                self._moments.setdefault(family.individuals[i].key, unknown)[row] = measured
            missing -= set(ready)
        return moments


def _ready(family: Pedigree, missing: set[int]) -> list[int]:
    """Returns the missing individuals none of whose ancestors is missing."""
    waiting: set[int] = set()
    for i, parents in enumerate(family.parents):
        if any(parent in waiting or parent in missing for parent in parents):
            waiting.add(i)
    return sorted(missing - waiting)


def _measure(
    tensor: TensorSlice,
    family: Pedigree,
    vectors: Mapping[int, Tensor],
    moments: Mapping[int, Moments],
    children: Sequence[int],
) -> dict[int, Moments]:
    """Returns the moments of the parents of every child, from one walk through the tensor."""
    parents = {i: family.parents[i] for i in children}
    sums: dict[int, list[Tensor]] = {i: [] for i in children}
    targets = [parent for pair in parents.values() for parent in pair]
    for _, entries in _walk(tensor, family, vectors, moments, targets):
        for i in children:
            sums[i].append(_products([entries[parent].double() for parent in parents[i]]))
    measured = {}
    for i in children:
        rows = torch.stack(sums[i]).tolist() if sums[i] else [[0.0] * 3]
        measured[i] = Moments(*(math.fsum(column) for column in zip(*rows, strict=True)))
    return measured


def _products(parents: Sequence[Tensor]) -> Tensor:
    """Returns ``a a``, ``b b`` and ``a b`` of two vectors, or of one and itself, ``(3,)``."""
    first, second = parents[0], parents[-1]
    square = _sum(first * first)
    if len(parents) == 1:
        return torch.stack([square, square, square])
    return torch.stack([square, _sum(second * second), _sum(first * second)])


def _sum(values: Tensor) -> Tensor:
    even = len(values) // _SUMMED * _SUMMED
    return values[:even].view(-1, _SUMMED).sum(1).sum() + values[even:].sum()


def _walk(
    tensor: TensorSlice,
    family: Pedigree,
    vectors: Mapping[int, Tensor],
    moments: Mapping[int, Moments],
    targets: Sequence[int],
) -> Iterator[tuple[EntryRange, dict[int, Tensor]]]:
    """Yields every block of the tensor with the targets' entries in it; not to be changed."""
    order = family.with_ancestors(targets)
    operators = {i: _operator(family.individuals[i], tensor, moments.get(i)) for i in order}
    uses = Counter(parent for i in order for parent in family.parents[i])
    uses.update(targets)
    for block in tensor.blocks():
        uses_left, entries = dict(uses), {}
        for i in order:
            parents, operator = family.parents[i], operators[i]
            if operator is None:
                entries[i] = vectors[i][block.start : block.stop]
            else:
                entries[i] = operator(block, *(entries[parent] for parent in parents))
            for parent in parents:
                uses_left[parent] -= 1
                if not uses_left[parent]:
                    del entries[parent]
        yield block, entries


def _operator(
    individual: Lineage, tensor: TensorSlice, moments: Moments | None
) -> Callable[..., Tensor] | None:
    """Returns the function from a block and the parents' entries to a child's; None: a founder."""
    known = moments or Moments(math.nan, math.nan, math.nan)
    if isinstance(individual, Crossed):
        return partial(individual.by.apply, moments=known)
    if isinstance(individual, Mutated):
        return individual.by.change(tensor, known.first)
    return None


class LineageWeights(LazyWeights):
    """An individual's parameters; every read breeds one of them.

    Raises MergeError where the lineage descends from a founder that is unknown.
    """

    def __init__(self, replay: Replay, lineage: Lineage, dtype: torch.dtype | None) -> None:
        replay.check(lineage)
        super().__init__(replay.slices)
        self._replay, self._dtype = replay, dtype
        self._pedigree = Pedigree.of(canonical(lineage))

    def _tensor(self, name: str) -> Tensor:
        tensor = self._replay.tensor(name, self._pedigree)
        return tensor.to(self._dtype or self._replay.pool.base.dtype(name))


@dataclass(frozen=True)
class LineagePlan:
    """A lineage with all that it needs to become a model.

    Args:
        start: the merge that is the founder ``start``; None: it has none.
    """

    start: Plan | None
    lineage: Lineage
    named_experts: ClassVar[None] = None

    @property
    def name(self) -> str:
        """Its founders, or their number where there are many."""
        start = START if self.start is None else self.start.name
        names = [start if name == START else name for name in founders(self.lineage)]
        return "lineage of " + (" + ".join(names) if len(names) < 5 else f"{len(names)} founders")

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> Weights:
        """Returns the parameters, computed when read, in float32 and cast once.

        `pool` holds at least the experts that the individual descends from. Raises MergeError for
        an unknown founder, or as the start's plan raises.
        """
        return LineageWeights(Replay(pool, self.start), self.lineage, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `plan_from_description`."""
        return {
            "kind": "lineage",
            "start": None if self.start is None else self.start.describe(),
            "lineage": lineage_to_json(self.lineage),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], start: Plan | None) -> LineagePlan:
        """Returns the plan that `describe` wrote; raises ValueError, naming a wrong key."""
        lineage = lineage_from_json(description.get("lineage"))
        if start is None and START in founders(lineage):
            raise ValueError("recipe: the lineage descends from 'start', but 'start' is null")
        return cls(start, lineage)
