"""Who lives on and who mates: the protocol, and the survival of the fittest by one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from merging.arrays import Vector
from search.populations.variation import Bred
from search.strategy import Outcome


@dataclass(frozen=True, eq=False)
class Individual:
    """A candidate that was scored; failures are none.

    Args:
        id: the candidate's id.
        bred: its lineage and what it hands down.
        fitness: ``(objectives,)``, higher is better.
        cases: ``(cases,)`` per-item scores; None: not read, or there are none.
    """

    id: int
    bred: Bred
    fitness: Vector
    cases: Vector | None = None


Pair: TypeAlias = tuple[Individual, Individual]


class SurvivalRule(Protocol):
    """Rules of a population; its members are the strategy's, so that these hold no state."""

    @property
    def reads_cases(self) -> bool:
        """Whether outcomes must have their cases."""
        ...

    def check_objectives(self, count: int) -> None:
        """Raises ValueError where these rules cannot judge a fitness of so many numbers."""
        ...

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Raises ValueError where an outcome lacks the cases that these rules read."""
        ...

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns who of the members and their children lives on, in the order of ids.

        Args:
            individuals: in the order of ids, at least one.
        """
        ...

    def pairing(
        self, members: Sequence[Individual], generation: int
    ) -> Callable[[np.random.Generator], Pair]:
        """Returns what draws two different parents; the first hands down its split.

        Args:
            members: in the order of ids, at least two.
            generation: how many generations were told.
        """
        ...


@dataclass(frozen=True)
class Truncation:
    """The best `size` of parents and children live on; both parents win a tournament.

    ``(mu + lambda)`` with mu = `size` and lambda the strategy's popsize. Of equals the older.

    Args:
        size: most members.
        tournament: how many members compete to be a parent; 1: chance decides.

    Raises:
        ValueError: an option below its least value.

    Source: Schwefel 1977 (plus selection); Goldberg & Deb 1991, A comparative analysis of
        selection schemes (tournaments).
    """

    size: int = 16
    tournament: int = 2
    reads_cases = False

    def __post_init__(self) -> None:
        check_size(self.size)
        if self.tournament < 1:
            raise ValueError(f"population.tournament must be at least 1, got {self.tournament}")

    def check_objectives(self, count: int) -> None:
        """Refuses several numbers."""
        if count > 1:
            raise ValueError(
                f"Truncation ranks by one number, the objective has {count}: choose an objective "
                "with one, or the population Fronts"
            )

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Reads none."""

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns the fittest."""
        ranked = sorted(individuals, key=_rank)
        return sorted(ranked[: self.size], key=lambda one: one.id)

    def pairing(
        self, members: Sequence[Individual], generation: int
    ) -> Callable[[np.random.Generator], Pair]:
        """Returns what holds two tournaments, the second among the others."""
        return tournaments(sorted(members, key=_rank), self.tournament)


def tournaments(
    ranked: Sequence[Individual], entrants: int
) -> Callable[[np.random.Generator], Pair]:
    """Returns what draws the winners of two tournaments, the second without the first winner.

    Args:
        ranked: best first, at least two.
        entrants: of each tournament, drawn without replacement.
    """

    def draw(rng: np.random.Generator) -> Pair:
        places = list(range(len(ranked)))
        first = _winner(places, entrants, rng)
        places.remove(first)
        return ranked[first], ranked[_winner(places, entrants, rng)]

    return draw


def check_size(size: int) -> None:
    """Raises ValueError for a population too small to have pairs."""
    if size < 2:
        raise ValueError(f"population.size must be at least 2, got {size}")


def _winner(places: Sequence[int], entrants: int, rng: np.random.Generator) -> int:
    return int(rng.choice(places, min(entrants, len(places)), replace=False).min())


def _rank(one: Individual) -> tuple[float, int]:
    return -float(one.fitness[0]), one.id
