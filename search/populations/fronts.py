"""NSGA-II: non-dominated fronts live on, the last one thinned by crowding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from search.populations.population import Individual, Pair, check_size, tournaments
from search.ranking import crowding, non_dominated
from search.strategy import Outcome


@dataclass(frozen=True)
class Fronts:
    """The least dominated and least crowded `size` of parents and children live on.

    With one objective the fronts are the groups of equals: survival of the fittest.

    Args:
        size: most members.
        tournament: how many members compete to be a parent; 2 in the paper.

    Raises:
        ValueError: an option below its least value.

    Source: Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II,
        sections III-A to III-C. Of equally crowded members the older is preferred.
    """

    size: int = 16
    tournament: int = 2
    reads_cases = False

    def __post_init__(self) -> None:
        check_size(self.size)
        if self.tournament < 1:
            raise ValueError(f"population.tournament must be at least 1, got {self.tournament}")

    def check_objectives(self, count: int) -> None:
        """Accepts any number."""

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Reads none."""

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns the first of `ranked`."""
        return sorted(ranked(individuals)[: self.size], key=lambda one: one.id)

    def pairing(
        self, members: Sequence[Individual], generation: int
    ) -> Callable[[np.random.Generator], Pair]:
        """Returns what holds two tournaments by front, then by crowding."""
        return tournaments(ranked(members), self.tournament)


def ranked(individuals: Sequence[Individual]) -> list[Individual]:
    """Returns front after front, within a front the least crowded first, then the older."""
    rest, order = list(individuals), list[Individual]()
    while rest:
        places = non_dominated([one.fitness for one in rest])
        front = [rest[place] for place in places]
        alone = crowding(np.array([one.fitness for one in front]))
        order += [front[i] for i in np.argsort(-alone, kind="stable")]
        rest = [one for place, one in enumerate(rest) if place not in set(places)]
    return order
