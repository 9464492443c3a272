"""The search: ask, evaluate, write down, tell; resuming replays what is written down."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np

from evaluators.requests import EvaluationError
from merging.arrays import Vector
from search.loop.evaluation import Evaluated, Evaluation
from search.loop.history import History, HistoryError, Record
from search.objective import Objective
from search.ranking import Best
from search.strategy import Candidate, G, Outcome, Strategy

logger = logging.getLogger(__name__)

_HOPELESS = 4
"""Failures in a row below which a generation of failures, being so small, shows nothing."""


class SearchFailed(RuntimeError):  # noqa: N818
    """No candidate can be scored; the message has the reason of the first that failed."""


@dataclass(frozen=True)
class Budget:
    """When to stop; whichever is reached first, and at least one must be given.

    Args:
        evaluations: most candidates to evaluate, failures included; repeats cost nothing.
        seconds: no evaluation starts after this much time in evaluations, over all sessions.
        target: fitness (the first, where there are several) that is good enough.
    """

    evaluations: int | None = None
    seconds: float | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations is None and self.seconds is None and self.target is None:
            raise ValueError("the budget is unlimited; set evaluations, seconds or target")
        if self.evaluations is not None and self.evaluations < 1:
            raise ValueError(f"budget.evaluations must be at least 1, got {self.evaluations}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"budget.seconds must be above 0, got {self.seconds}")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(f"budget.target must be finite, got {self.target}")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search gave.

    Args:
        stop: ``evaluations``, ``seconds`` or ``target``: the budget; ``exhausted``: the strategy
            has nothing more to ask; ``stalled``: it only asked what had been evaluated; else what
            `account` said.
        records: all candidates, in the order of ids.
        best: ids of the best record (the first of equals), or of the non-dominated ones; by
            luck where every generation has items of its own.
        evaluations: how many were evaluated, in all sessions; failures included.
        failures: how many of these failed.
        repeats: how many candidates had been evaluated before.
        seconds: time spent in evaluations, in all sessions.
    """

    stop: str
    records: tuple[Record, ...]
    best: tuple[int, ...]
    evaluations: int
    failures: int
    repeats: int
    seconds: float


def search(
    strategy: Strategy[G],
    evaluate: Evaluation[G],
    objective: Objective,
    history: History,
    budget: Budget,
    *,
    encode: Callable[[G], Any],
    canonical: Callable[[G], Any] | None = None,
    on_record: Callable[[Record, bool], None] | None = None,
    account: Callable[[int], str | None] | None = None,
    stall_generations: int = 20,
) -> SearchResult:
    """Searches until the budget is spent, and writes every candidate to the history.

    With a history that is not empty the strategy, freshly built, is told what is in it instead of
    evaluating again: the search goes on where it was stopped, with the same candidates.

    Args:
        strategy: freshly built.
        evaluate: scores a generation; where each has items of its own, fitness of different
            generations cannot be compared.
        objective: turns scores into fitness.
        history: of this run; may hold candidates of earlier sessions.
        budget: when to stop. A last generation that it cuts short is not told.
        encode: genome to JSON values, for the history.
        canonical: genome to JSON values that are equal for genomes that mean the same model;
            None: `encode`. A genome that was evaluated before on the same items is not evaluated
            again.
        on_record: called with every record in order, and whether it came from the history.
        account: called before every generation, those of earlier sessions included, with how
            many genomes have to be evaluated for it; the reason that it returns ends the search.
        stall_generations: so many generations in a row with nothing but genomes that were asked
            before end the search.

    Raises:
        SearchFailed: all candidates of a generation failed (of smaller generations than four:
            at least four in a row), or the search ended before any could be scored.
        HistoryError: the history belongs to another configuration or version.
    """
    run = Session(evaluate, objective, history, budget, encode, canonical or encode, on_record)
    stalled = 0
    while (stop := run.spent()) is None:
        candidates = sorted(strategy.ask(), key=lambda candidate: candidate.id)
        if not candidates:
            stop = "exhausted"
            break
        if account is not None and (stop := account(run.count_new(candidates))) is not None:
            break
        records = run.generation(candidates)
        if len(records) < len(candidates):
            continue
        run.check_alive(records)
        strategy.tell([Outcome(r.id, r.fitness, r.cases) for r in records])
        stalled = 0 if run.new else stalled + 1
        if stalled >= stall_generations:
            stop = "stalled"
            break
    return run.result(stop)


class Session(Generic[G]):
    """One session of a search: what is known so far."""

    def __init__(
        self,
        evaluate: Evaluation[G],
        objective: Objective,
        history: History,
        budget: Budget,
        encode: Callable[[G], Any],
        canonical: Callable[[G], Any],
        on_record: Callable[[Record, bool], None] | None,
    ) -> None:
        self._evaluate, self._objective = evaluate, objective
        self._history, self._budget = history, budget
        self._encode, self._canonical, self._on_record = encode, canonical, on_record
        self._records: list[Record] = []
        self._generations = 0
        self._seen: set[str] = set()
        self._originals: dict[tuple[int | None, str], Record] = {}
        self.new = 0
        """Genomes of the last generation that had never been asked before."""
        self._best: Best[None] = Best()
        self._highest = -math.inf
        self._failed_in_row: list[Record] = []
        self._seconds = 0.0

    def spent(self) -> str | None:
        """Returns which part of the budget is used up; None: there is some left."""
        limit = self._budget
        if limit.target is not None and self._highest >= limit.target:
            return "target"
        if limit.evaluations is not None and len(self._originals) >= limit.evaluations:
            return "evaluations"
        if limit.seconds is not None and self._seconds >= limit.seconds:
            return "seconds"
        return None

    @property
    def evaluations(self) -> int:
        """How many candidates were evaluated, in all sessions; failures included."""
        return len(self._originals)

    def generation(self, candidates: list[Candidate[G]], after: int | None = None) -> list[Record]:
        """Returns the candidates' records; fewer than candidates where the budget ends.

        Args:
            candidates: of one generation, or a single one in a steady state.
            after: in a steady state how many candidates have been asked so far.
        """
        keys = self._keys(candidates)
        self.new = len({genome for _, genome in keys} - self._seen)
        self._seen |= {genome for _, genome in keys}
        fresh = self._fresh(candidates, keys)
        recorded = sum(each.id in self._history.records for each in fresh)
        found: Iterator[Evaluated] = iter(())
        if recorded < len(fresh):
            found = self._evaluate(
                [each.genome for each in fresh], self._generations, tuple(self._records), recorded
            )
        records: list[Record] = []
        for candidate, key in zip(candidates, keys, strict=True):
            if self.spent() is not None:
                break
            records.append(self._record(candidate, key, found, after))
        self._generations += 1
        return records

    def count_new(self, candidates: list[Candidate[G]]) -> int:
        """Returns how many genomes have to be evaluated, or were for this very generation."""
        return len(self._fresh(candidates, self._keys(candidates)))

    def _keys(self, candidates: list[Candidate[G]]) -> list[tuple[int | None, str]]:
        """Returns what tells evaluations apart: the items' generation, and the genome."""
        items = self._generations if self._evaluate.own_items else None
        return [(items, json.dumps(self._canonical(each.genome))) for each in candidates]

    def _fresh(
        self, candidates: list[Candidate[G]], keys: Sequence[tuple[int | None, str]]
    ) -> list[Candidate[G]]:
        """Returns the candidates whose genomes have not been evaluated before."""
        known = set(self._originals)
        fresh = []
        for candidate, key in zip(candidates, keys, strict=True):
            if key not in known:
                fresh.append(candidate)
                known.add(key)
        return fresh

    def _record(
        self,
        candidate: Candidate[G],
        key: tuple[int | None, str],
        found: Iterator[Evaluated],
        after: int | None,
    ) -> Record:
        items = key[0]
        original = self._originals.get(key)
        record = self._history.records.get(candidate.id)
        replayed = record is not None
        if record is not None:
            self._check(record, candidate, original, items, after)
        else:
            record = replace(self._new(candidate, original, items, found), after=after)
            self._history.append(record)
        self._note(record, key)
        if self._on_record is not None:
            self._on_record(record, replayed)
        return record

    def _new(
        self,
        candidate: Candidate[G],
        original: Record | None,
        items: int | None,
        found: Iterator[Evaluated],
    ) -> Record:
        genome = self._encode(candidate.genome)
        if original is not None:
            return replace(
                original, id=candidate.id, genome=genome, same_as=original.id, seconds=0.0
            )
        evaluated = next(found)
        fitness: Vector | None = None
        cases: Vector | None = None
        failure = evaluated.failure
        if evaluated.estimate is not None:
            fitness, cases = evaluated.estimate.fitness, evaluated.estimate.cases
        elif failure is None:
            try:
                fitness, cases = self._objective(evaluated.scores)
            except EvaluationError as error:
                failure = str(error)
        if failure is not None:
            logger.warning("candidate %d failed: %s", candidate.id, failure)
        return Record(
            id=candidate.id,
            genome=genome,
            scores={name: float(score.value) for name, score in evaluated.scores.items()},
            fitness=fitness,
            failure=failure,
            cases=cases,
            seconds=round(evaluated.seconds, 6),
            items=items,
            asked=None if evaluated.estimate is None else evaluated.estimate.asked,
        )

    def _check(
        self,
        record: Record,
        candidate: Candidate[G],
        original: Record | None,
        items: int | None,
        after: int | None,
    ) -> None:
        """Refuses a record that this very configuration would not have written."""
        if record.after != after:
            raise HistoryError(
                f"candidate {record.id} of the history was told {_order(record.after)}, this "
                f"search tells it {_order(after)}: start in an empty directory"
            )
        if record.items != items:
            raise HistoryError(
                f"candidate {record.id} of the history was scored on {_items(record.items)}, this "
                f"search scores it on {_items(items)}: start in an empty directory"
            )
        asked, same_as = self._encode(candidate.genome), None if original is None else original.id
        if json.dumps(record.genome) != json.dumps(asked) or record.same_as != same_as:
            raise HistoryError(
                f"candidate {record.id} of the history has another genome than the strategy asks "
                "now; the history does not belong to this configuration or these library "
                "versions: start in an empty directory"
            )
        if record.fitness is None or record.asked is not None or not record.scores:
            return  # nothing that the fitness could be recomputed from
        fitness = self._objective.fitness(record.scores)
        if not np.array_equal(fitness, record.fitness):
            raise HistoryError(
                f"candidate {record.id} of the history has fitness {record.fitness.tolist()}, but "
                f"the objective makes {fitness.tolist()} of its scores; the objective or its "
                "references changed: start in an empty directory"
            )

    def _note(self, record: Record, key: tuple[int | None, str]) -> None:
        self._records.append(record)
        self._seconds += record.seconds
        if record.asked is None:
            self._best.add(record.id, None, record.fitness)
        if record.same_as is None:
            self._originals[key] = record
            self._failed_in_row = (
                [] if record.fitness is not None else [*self._failed_in_row, record]
            )
        if record.fitness is not None and record.asked is None:
            self._highest = max(self._highest, float(record.fitness[0]))

    def check_alive(self, generation: list[Record]) -> None:
        """Raises SearchFailed where a generation shows that nothing can be scored."""
        new = [record for record in generation if record.same_as is None]
        if not new or any(record.fitness is not None for record in generation):
            return
        failed = self._failed_in_row
        if len(failed) >= _HOPELESS:
            raise SearchFailed(
                f"the last {len(failed)} candidates failed, a whole generation among them; the "
                f"search stops; candidate {failed[0].id}: {failed[0].failure}"
            )

    def result(self, stop: str) -> SearchResult:
        """Returns what was found."""
        failed = [r for r in self._originals.values() if r.fitness is None]
        if not self._best.ids and self._records:
            if len(failed) < len(self._originals):
                raise SearchFailed(
                    "the budget ended before a candidate was asked all items: raise "
                    "budget.evaluations or budget.seconds to a whole generation at least"
                )
            raise SearchFailed(
                f"no candidate could be scored; candidate {failed[0].id}: {failed[0].failure}"
            )
        return SearchResult(
            stop=stop,
            records=tuple(self._records),
            best=self._best.ids,
            evaluations=len(self._originals),
            failures=len(failed),
            repeats=len(self._records) - len(self._originals),
            seconds=self._seconds,
        )


def _items(generation: int | None) -> str:
    return "all items" if generation is None else f"the items of generation {generation}"


def _order(after: int | None) -> str:
    return "with its generation" if after is None else f"alone, after {after} had been asked"
