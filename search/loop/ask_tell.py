"""Order of calls of an ask/tell strategy, ids of its candidates, and the best it was told."""

from collections.abc import Callable, Sequence
from typing import Generic

import numpy as np

from search.ranking import Best
from search.strategy import Candidate, G, Outcome


class AskTell(Generic[G]):
    """Hands out ids, pairs outcomes with their candidates, keeps the best; strategies hold one.

    Args:
        copy: what callers get of a genome; None: genomes cannot be changed.
    """

    def __init__(self, copy: Callable[[G], G] | None = None) -> None:
        self._copy = copy
        self._steady: bool | None = None
        self._pending: dict[int, G] = {}
        self._objectives: int | None = None
        self._best: Best[G] = Best()
        self.candidates = 0
        """How many candidates were asked."""
        self.generations = 0
        """How many generations were asked, also counting one that waits for its outcomes."""

    @property
    def best(self) -> list[G]:
        """The best genome told, or the non-dominated ones; copies."""
        return [self._copied(genome) for genome in self._best.genomes]

    @property
    def best_ids(self) -> tuple[int, ...]:
        """Ids of `best`."""
        return self._best.ids

    def check_told(self) -> None:
        """Raises RuntimeError while a generation waits for its outcomes, or in a steady state."""
        if self._steady:
            raise RuntimeError("ask() was called after ask_one(); a search has one way of asking")
        if self._pending:
            raise RuntimeError(
                f"ask() was called before candidates {list(self._pending)} were told; call "
                "tell() first"
            )

    def ask(self, genomes: Sequence[G]) -> list[Candidate[G]]:
        """Returns the genomes as candidates with fresh ids, and waits for their outcomes."""
        self.check_told()
        self._steady = False
        self.generations += bool(genomes)
        return [self._candidate(genome) for genome in genomes]

    def tell(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Returns the outcomes of the generation sorted by id, and stops waiting for them.

        Raises:
            RuntimeError: nothing was asked.
            ValueError: ids are missing, doubled or were not asked; a fitness is not finite or
                has another number of objectives than those before.
        """
        if not self._pending or self._steady:
            raise RuntimeError("tell() was called before ask(); there is nothing to be told")
        _check_ids(list(self._pending), [outcome.id for outcome in outcomes])
        ordered = sorted(outcomes, key=lambda outcome: outcome.id)
        objectives = self._objectives
        for outcome in ordered:
            objectives = _check_fitness(outcome, objectives)
        self._objectives = objectives
        for outcome in ordered:
            self._best.add(outcome.id, self._pending.pop(outcome.id), outcome.fitness)
        return ordered

    def check_steady(self) -> None:
        """Raises RuntimeError where whole generations were asked."""
        if self._steady is False:
            raise RuntimeError("ask_one() was called after ask(); a search has one way of asking")

    def ask_one(self, genome: G) -> Candidate[G]:
        """Returns the genome as a candidate with a fresh id; others may wait for outcomes."""
        self.check_steady()
        self._steady = True
        return self._candidate(genome)

    def tell_one(self, outcome: Outcome) -> None:
        """Takes the outcome of a candidate that waits for one.

        Raises:
            ValueError: it does not wait for an outcome, or wants `tell`; or as `tell`.
        """
        waiting = self._pending if self._steady else {}
        if outcome.id not in waiting:
            raise ValueError(
                f"tell_one() was given candidate {outcome.id}, which waits for no outcome of its "
                f"own; waiting are {list(waiting)}"
            )
        self._objectives = _check_fitness(outcome, self._objectives)
        self._best.add(outcome.id, self._pending.pop(outcome.id), outcome.fitness)

    def _candidate(self, genome: G) -> Candidate[G]:
        number = self.candidates
        self.candidates += 1
        self._pending[number] = genome
        return Candidate(number, self._copied(genome))

    def _copied(self, genome: G) -> G:
        return genome if self._copy is None else self._copy(genome)


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
