"""NSGA-II: non-dominated fronts live on, the last one thinned by crowding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.checks import check_at_least
from search.populations.population import Individual, Pairing, SurvivalRule, tournaments
from search.ranking import crowding, non_dominated


@dataclass(frozen=True)
class Fronts(SurvivalRule):
    """The least dominated and least crowded `size` of parents and children live on.

    With one objective the fronts are the groups of equals: survival of the fittest.

    Args:
        tournament: how many members compete to be a parent; 2 in the paper.

    Source: Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II,
        sections III-A to III-C. Of equally crowded members the older is preferred.
    """

    size: int = 16
    tournament: int = 2

    def __post_init__(self) -> None:
        check_at_least(2, "population.", size=self.size)
        check_at_least(1, "population.", tournament=self.tournament)

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns the first of `ranked`."""
        first = ranked(individuals)[: self.size]
        return sorted(first, key=lambda individual: individual.id)

    def pairing(self, members: Sequence[Individual], generation: int) -> Pairing:
        """Returns what holds two tournaments by front, then by crowding."""
        return tournaments(ranked(members), self.tournament)


def ranked(individuals: Sequence[Individual]) -> list[Individual]:
    """Returns front after front, within a front the least crowded first, then the older.

    Deb et al. 2002, section III-C: i before j if ``rank_i < rank_j``, or ``rank_i = rank_j`` and
    ``distance_i > distance_j``.
    """
    rest, order = list(individuals), list[Individual]()
    while rest:
        # F_k = {p in rest : no q in rest dominates p}, the front of rank k (section III-A)
        members = set(non_dominated([individual.fitness for individual in rest]))
        front = [rest[i] for i in sorted(members)]
        distances = crowding(np.array([individual.fitness for individual in front]))
        order += [front[i] for i in np.argsort(-distances, kind="stable")]
        rest = [individual for i, individual in enumerate(rest) if i not in members]
    return order
