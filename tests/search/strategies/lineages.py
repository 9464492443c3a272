"""Lineages over small vectors, decoded by a naive interpreter; and problems to be searched."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from merging.arrays import Vector
from merging.lineages.crossover import (
    ArithmeticCrossover,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Crossed, Founder, Lineage, ancestry, lineage_to_json
from merging.lineages.mutation import LowRankMutation, ScaleMutation, SignMutation
from search.strategies.crossover import GeneticAlgorithm
from search.strategy import Candidate, Outcome

LAYERS = 6
"""A vector is six layers of equal size, each of them one tensor."""


def decode(lineage: Lineage, founders: Mapping[str, Vector]) -> Vector:
    """The task vector of a lineage."""
    known: dict[Lineage, Vector] = {}
    for one in ancestry(lineage):
        if isinstance(one, Founder):
            known[one] = founders[one.name]
        elif isinstance(one, Crossed):
            known[one] = crossed(known[one.first], known[one.second], one.by)
        else:
            known[one] = mutated(known[one.parent], one.by)
    return known[lineage]


def crossed(first: Vector, second: Vector, by: Any) -> Vector:
    size = len(first)
    if isinstance(by, ArithmeticCrossover):
        return by.weight * first + (1 - by.weight) * second
    if isinstance(by, SlerpCrossover):
        return slerp(first, second, by.weight)
    if isinstance(by, SplitSlerpCrossover):
        before = np.arange(size) < round(by.cut * size)
        arcs = slerp(first, second, by.weight), slerp(first, second, 1 - by.weight)
        return np.where(before, *arcs)
    if isinstance(by, PointCrossover):
        unit = 1 if by.over == "vector" else size // LAYERS
        bounds = [round(cut * (size // unit)) * unit for cut in by.cuts]
        sides = (np.arange(size)[:, None] >= np.array(bounds)).sum(axis=1) % 2
        return np.where(sides == 0, first, second)
    rng = np.random.default_rng(by.seed)
    if isinstance(by, TensorCrossover):
        return np.where(np.repeat(rng.random(LAYERS) < by.share, size // LAYERS), first, second)
    assert isinstance(by, UniformCrossover)
    return np.where(rng.random(size) < by.share, first, second)


def mutated(parent: Vector, by: Any) -> Vector:
    if isinstance(by, ScaleMutation):
        return float(by.factor) * parent
    rng = np.random.default_rng(by.seed)
    if isinstance(by, LowRankMutation):
        rms = float(np.sqrt((parent**2).mean()))
        noisy: Vector = parent + by.size * rms * rng.normal(size=len(parent))
        return noisy
    assert isinstance(by, SignMutation)
    flipped: Vector = np.where(rng.random(len(parent)) < by.share, -parent, parent)
    return flipped


def slerp(first: Vector, second: Vector, weight: float) -> Vector:
    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    angle = math.acos(min(1.0, max(-1.0, float(first @ second / lengths)))) if lengths else 0.0
    if math.sin(angle) < 1e-6:
        return weight * first + (1 - weight) * second
    whole = math.sin(angle)
    result: Vector = (
        math.sin(weight * angle) * first + math.sin((1 - weight) * angle) * second
    ) / whole
    return result


class Problem:
    """Separable: founder k is right on its share of the entries, and elsewhere beside it.

    An item is an entry and worth ``-(entry - target) ** 2``; a task is a founder's share.
    """

    def __init__(self, founders: int = 3, size: int = 24, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.target = rng.normal(size=size)
        self.tasks = np.arange(size) * founders // size
        self.founders = {
            f"expert{k}": np.where(
                self.tasks == k, 0.7 * self.target, self.target + rng.normal(size=size)
            )
            for k in range(founders)
        }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.founders)

    def items(self, lineage: Lineage) -> Vector:
        items: Vector = -((decode(lineage, self.founders) - self.target) ** 2)
        return items

    def one(self, lineage: Lineage) -> tuple[Vector, Vector]:
        items = self.items(lineage)
        return np.array([items.mean()]), items

    def several(self, lineage: Lineage) -> tuple[Vector, Vector]:
        items = self.items(lineage)
        means = [items[self.tasks == task].mean() for task in range(len(self.founders))]
        return np.array(means), items


Scored = Callable[[Lineage], tuple[Vector, Vector] | None]


def outcomes(candidates: Sequence[Candidate[Lineage]], score: Scored) -> list[Outcome]:
    told = []
    for candidate in candidates:
        scores = score(candidate.genome)
        told.append(Outcome(candidate.id, *(scores or (None, None))))
    return told


def evolve(strategy: GeneticAlgorithm, score: Scored, evaluations: int) -> list[Outcome]:
    """All outcomes of a search with this budget, at least."""
    seen: list[Outcome] = []
    while len(seen) < evaluations:
        told = outcomes(strategy.ask(), score)
        strategy.tell(told)
        seen += told
    return seen


def best(seen: Sequence[Outcome]) -> float:
    return max(float(o.fitness.mean()) for o in seen if o.fitness is not None)


def written(lineage: Lineage) -> str:
    return json.dumps(lineage_to_json(lineage))


def operators(lineage: Lineage) -> list[Any]:
    """Every operator that made a lineage, each once."""
    return [one.by for one in ancestry(lineage) if not isinstance(one, Founder)]
