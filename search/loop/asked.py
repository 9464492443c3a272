"""Order of calls of an ask/tell strategy: who was asked, and whether exactly those are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

import numpy as np

from search.strategy import Candidate, G, Outcome


class Asked(Generic[G]):
    """Hands out ids and pairs outcomes with their candidates; strategies hold one of these."""

    def __init__(self) -> None:
        self._next_id = 0
        self._objectives: int | None = None
        self._pending: list[Candidate[G]] = []
        self._alone: bool | None = None

    @property
    def count(self) -> int:
        """How many candidates were asked so far."""
        return self._next_id

    @property
    def pending(self) -> tuple[Candidate[G], ...]:
        """The candidates asked and not yet told."""
        return tuple(self._pending)

    def check_told(self) -> None:
        """Raises RuntimeError while a generation waits for its outcomes, or in a steady state."""
        if self._alone:
            raise RuntimeError("ask() was called after ask_one(); a search has one way of asking")
        if self._pending:
            ids = [candidate.id for candidate in self._pending]
            raise RuntimeError(
                f"ask() was called before candidates {ids} were told; call tell() first"
            )

    def ask(self, genomes: Sequence[G]) -> list[Candidate[G]]:
        """Returns the genomes as candidates with fresh ids, and waits for their outcomes.

        Raises:
            RuntimeError: the generation asked before has not been told.
        """
        self.check_told()
        self._alone = False
        self._pending = [Candidate(self._next_id + i, genome) for i, genome in enumerate(genomes)]
        self._next_id += len(genomes)
        return list(self._pending)

    def tell(self, outcomes: Sequence[Outcome]) -> list[tuple[Candidate[G], Outcome]]:
        """Returns each candidate with its outcome, sorted by id, and stops waiting for them.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: ids are missing, doubled or were not asked; a fitness is not finite or
                has another number of objectives than those before.
        """
        if not self._pending or self._alone:
            raise RuntimeError("tell() was called before ask(); there is nothing to be told")
        _check_ids([candidate.id for candidate in self._pending], [o.id for o in outcomes])
        by_id = {outcome.id: outcome for outcome in outcomes}
        pairs = [(candidate, by_id[candidate.id]) for candidate in self._pending]
        objectives = self._objectives
        for _, outcome in pairs:
            objectives = _check_fitness(outcome, objectives)
        self._objectives = objectives
        self._pending = []
        return pairs

    def check_alone(self) -> None:
        """Raises RuntimeError where whole generations were asked."""
        if self._alone is False:
            raise RuntimeError("ask_one() was called after ask(); a search has one way of asking")

    def ask_one(self, genome: G) -> Candidate[G]:
        """Returns the genome as a candidate with a fresh id; others may wait for outcomes.

        Raises:
            RuntimeError: whole generations were asked before.
        """
        self.check_alone()
        self._alone = True
        candidate = Candidate(self._next_id, genome)
        self._pending.append(candidate)
        self._next_id += 1
        return candidate

    def tell_one(self, outcome: Outcome) -> Candidate[G]:
        """Returns the outcome's candidate, and stops waiting for it.

        Raises:
            ValueError: it does not wait for an outcome, or wants `tell`; or as `tell`.
        """
        waiting = {each.id: each for each in self._pending if self._alone}
        if outcome.id not in waiting:
            raise ValueError(
                f"tell_one() was given candidate {outcome.id}, which waits for no outcome of its "
                f"own; waiting are {list(waiting)}"
            )
        self._objectives = _check_fitness(outcome, self._objectives)
        self._pending.remove(waiting[outcome.id])
        return waiting[outcome.id]


def _check_ids(asked: Sequence[int], told: Sequence[int]) -> None:
    doubled = sorted({i for i in told if told.count(i) > 1})
    missing = sorted(set(asked) - set(told))
    foreign = sorted(set(told) - set(asked))
    faults = [("told twice", doubled), ("missing", missing), ("never asked", foreign)]
    text = "; ".join(f"{what}: {ids}" for what, ids in faults if ids)
    if text:
        raise ValueError(f"tell() wants one outcome for each of the ids {list(asked)}; {text}")


def _check_fitness(outcome: Outcome, objectives: int | None) -> int | None:
    if outcome.fitness is None:
        return objectives
    shape = outcome.fitness.shape
    if len(shape) != 1 or shape[0] == 0 or objectives not in (None, shape[0]):
        wanted = "objectives" if objectives is None else str(objectives)
        raise ValueError(f"fitness of candidate {outcome.id} has shape {shape}, not ({wanted},)")
    if not np.isfinite(outcome.fitness).all():
        raise ValueError(
            f"fitness of candidate {outcome.id} is {outcome.fitness}; "
            "a candidate that could not be scored is told with fitness None"
        )
    return int(shape[0])
