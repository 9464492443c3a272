"""The ask/tell protocol; scores find their candidate by id, never by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from merging.arrays import Vector

G = TypeVar("G")


@dataclass(frozen=True)
class Candidate(Generic[G]):
    """A genome to be evaluated; `id` is unique in a run, counts from 0 and is never reused."""

    id: int
    genome: G


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gave.

    Args:
        fitness: ``(objectives,)``, higher is better; None: could not be evaluated, ranks worst.
        cases: ``(cases,)`` per-item scores in a fixed order, where the evaluators give them.
    """

    id: int
    fitness: Vector | None
    cases: Vector | None = None


class Strategy(Protocol[G]):
    """Proposes candidates and learns from their outcomes; all state of a search lives here."""

    @property
    def compares_generations(self) -> bool:
        """Whether fitness of different generations is compared, which then need the same items."""
        ...

    def ask(self) -> list[Candidate[G]]:
        """Returns the next generation.

        Raises:
            RuntimeError: the generation asked before has not been told.
        """
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Takes the outcomes of exactly the asked ids, in any order.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: ids are missing, doubled or were not asked; names them.
        """
        ...

    def recommend(self) -> list[G]:
        """Returns the best genome told, or the non-dominated set; empty before the first tell."""
        ...
