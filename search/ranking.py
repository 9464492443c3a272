"""Who is better: dominance, crowding, and the best genomes seen; higher fitness is better."""

from collections.abc import Sequence
from typing import Generic

import numpy as np

from merging.arrays import Matrix, Vector
from search.strategy import G


def dominates(first: Vector, second: Vector) -> bool:
    """Returns whether `first` is nowhere worse and somewhere better; one objective: is higher."""
    return bool((first >= second).all() and (first > second).any())


def non_dominated(fitness: Sequence[Vector]) -> list[int]:
    """Returns the positions of the vectors that no other dominates, in order."""
    return [
        i for i, one in enumerate(fitness) if not any(dominates(other, one) for other in fitness)
    ]


def crowding(fitness: Matrix) -> Vector:
    """Returns how alone each of the vectors ``(points, objectives)`` is: ``(points,)``.

    The sum over objectives of the gap between a point's two neighbours, as a share of the whole
    range; infinite for the extremes of an objective.

    Source: Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II,
    section III-B.
    """
    points = len(fitness)
    distance = np.zeros(points)
    for column in fitness.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]] if points else 0.0
        distance[order[:1]] = distance[order[-1:]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


class Best(Generic[G]):
    """The best genome told so far, or with several objectives the non-dominated ones.

    Of equally fit candidates with one objective the one with the lowest id stays.
    """

    def __init__(self) -> None:
        self._front: list[tuple[int, G, Vector]] = []

    def add(self, candidate_id: int, genome: G, fitness: Vector | None) -> None:
        """Takes a candidate into account; None as fitness: it failed and can never be best."""
        if fitness is None:
            return
        if len(fitness) == 1 and self._front and not dominates(fitness, self._front[0][2]):
            return
        if any(dominates(kept, fitness) for _, _, kept in self._front):
            return
        self._front = [entry for entry in self._front if not dominates(fitness, entry[2])]
        self._front.append((candidate_id, genome, fitness.copy()))

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the best, in the order of telling."""
        return tuple(candidate_id for candidate_id, _, _ in self._front)

    @property
    def genomes(self) -> list[G]:
        """Genomes of the best, in the order of telling."""
        return [genome for _, genome, _ in self._front]
