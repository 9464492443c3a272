"""What a population is: who lives on and who mates; and the plain one, survival of the fittest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np

from merging.arrays import Vector
from search.checks import check_at_least
from search.populations.variation import Bred
from search.strategy import Outcome


@dataclass(frozen=True, eq=False)
class Individual:
    """A candidate that was scored; failures are none.

    Args:
        bred: its lineage and what it hands down.
        fitness: ``(objectives,)``, higher is better.
        cases: ``(cases,)`` per-item scores; None: not read, or there are none.
    """

    id: int
    bred: Bred
    fitness: Vector
    cases: Vector | None = None


Pair: TypeAlias = tuple[Individual, Individual]
Pairing: TypeAlias = Callable[[np.random.Generator], Pair]
"""Draws two different parents; the first hands down its split."""


class SurvivalRule(Protocol):
    """Rules of a population; its members are the strategy's, so that these hold no state.

    Attributes:
        reads_cases: whether outcomes must have their cases.
    """

    reads_cases: ClassVar[bool] = False

    def check_objectives(self, count: int) -> None:
        """Raises ValueError where these rules cannot judge a fitness of so many numbers."""
        return  # any number will do

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Raises ValueError where an outcome lacks the cases that these rules read."""
        return  # none are read

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns who of the members and their children lives on, in the order of ids.

        Args:
            individuals: in the order of ids, at least one.
        """
        ...

    def pairing(self, members: Sequence[Individual], generation: int) -> Pairing:
        """Returns what draws parents.

        Args:
            members: in the order of ids, at least two.
            generation: how many generations were told.
        """
        ...


@dataclass(frozen=True)
class Truncation(SurvivalRule):
    """The best `size` of parents and children live on; both parents win a tournament.

    ``(mu + lambda)`` with mu = `size` and lambda the strategy's popsize. Of equals the older.

    Args:
        tournament: how many members compete to be a parent; 1: chance decides.

    Source: Schwefel 1977 (plus selection); Goldberg & Deb 1991, A comparative analysis of
        selection schemes (tournaments).
    """

    size: int = 16
    tournament: int = 2

    def __post_init__(self) -> None:
        check_at_least(2, "population.", size=self.size)
        check_at_least(1, "population.", tournament=self.tournament)

    def check_objectives(self, count: int) -> None:
        """Refuses several numbers."""
        if count > 1:
            raise ValueError(
                f"Truncation ranks by one number, the objective has {count}: choose an objective "
                "with one, or the population Fronts"
            )

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns the fittest."""
        fittest = sorted(individuals, key=_rank)[: self.size]
        return sorted(fittest, key=lambda individual: individual.id)

    def pairing(self, members: Sequence[Individual], generation: int) -> Pairing:
        """Returns what holds two tournaments, the second among the others."""
        return tournaments(sorted(members, key=_rank), self.tournament)


def tournaments(ranked: Sequence[Individual], competitors: int) -> Pairing:
    """Returns what draws the winners of two tournaments, the second without the first winner.

    Args:
        ranked: best first, at least two.
        competitors: of each tournament, drawn without replacement.
    """

    def draw(rng: np.random.Generator) -> Pair:
        ranks = list(range(len(ranked)))
        first = _winner(ranks, competitors, rng)
        ranks.remove(first)
        return ranked[first], ranked[_winner(ranks, competitors, rng)]

    return draw


def _winner(ranks: Sequence[int], competitors: int, rng: np.random.Generator) -> int:
    return int(rng.choice(ranks, min(competitors, len(ranks)), replace=False).min())


def _rank(individual: Individual) -> tuple[float, int]:
    return -float(individual.fitness[0]), individual.id
