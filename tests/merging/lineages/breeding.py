"""Individuals bred at random for tests of lineages, with every kind of operator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from merging.lineages.crossover import (
    ArithmeticCrossover,
    CrossoverOperator,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Crossed, Founder, Lineage, Mutated
from merging.lineages.mutation import LowRankMutation, Mutation, ScaleMutation, SignMutation

A, B, C, START, BASE = map(Founder, ("expert0", "expert1", "expert2", "start", "base"))


def bred_population(size: int, generations: int, founders: Sequence[Lineage]) -> list[Lineage]:
    """Returns the last generation; every parent comes from the generation before."""
    rng = np.random.default_rng(0)
    population = list(founders)
    for _ in range(generations):
        population = [offspring(population, rng) for _ in range(size)]
    return population


def offspring(population: Sequence[Lineage], rng: np.random.Generator) -> Lineage:
    first, second = (population[i] for i in rng.integers(len(population), size=2))
    number, share, weight = int(rng.integers(2**62)), float(rng.random()), float(rng.normal())
    crossing: list[CrossoverOperator] = [
        UniformCrossover(number, share),
        PointCrossover((share,)),
        PointCrossover((share / 2, share), "layers"),
        TensorCrossover(number, share),
        ArithmeticCrossover(weight),
        SlerpCrossover(share),
        SplitSlerpCrossover(share, share),
    ]
    changes: list[Mutation] = [
        ScaleMutation(1 + share),
        LowRankMutation(number, 2, share),
        SignMutation(number, share / 9),
    ]
    child = Crossed(first, second, crossing[rng.integers(len(crossing))])
    return Mutated(child, changes[rng.integers(len(changes))])


def digest(weights: Mapping[str, Tensor]) -> str:
    content = b"".join(weights[name].numpy().tobytes() for name in weights)
    return hashlib.sha256(content).hexdigest()
