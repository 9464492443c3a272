"""What a search knows while it runs: its budget, what was written down, and its result."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias

import numpy as np

from merging.arrays import Vector
from search.loop.evaluation import Evaluated, attempt
from search.loop.history import History, HistoryError, Record
from search.objective import Objective
from search.ranking import Best
from search.strategy import Candidate, G

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
        records: all candidates, in the order of telling.
        best: ids of the best record (the first of equals), or of the non-dominated ones; by
            luck where every generation has items of its own.
        evaluations: how many were evaluated, in all sessions; failures included.
        failures: how many of these failed.
        repeats: how many candidates had been evaluated before.
        seconds: time spent in evaluations, in all sessions.
        last: ids of the last generation that was told whole; none in a steady state.
    """

    stop: str
    records: tuple[Record, ...]
    best: tuple[int, ...]
    evaluations: int
    failures: int
    repeats: int
    seconds: float
    last: tuple[int, ...] = ()


Key: TypeAlias = tuple[int | None, str]
"""What tells evaluations apart: the generation that has items of its own, and the genome."""


class Session(Generic[G]):
    """One session of a search: writes results down, and knows what was written so far."""

    def __init__(
        self,
        objective: Objective,
        history: History,
        budget: Budget,
        encode: Callable[[G], Any],
        canonical: Callable[[G], Any],
        on_record: Callable[[Record, bool], None] | None,
    ) -> None:
        self._objective = objective
        self._history = history
        self._budget = budget
        self._encode = encode
        self._canonical = canonical
        self._on_record = on_record
        self._records: list[Record] = []
        self._genomes: set[str] = set()
        self._originals: dict[Key, Record] = {}
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

    @property
    def genomes(self) -> int:
        """How many different genomes have a record."""
        return len(self._genomes)

    @property
    def records(self) -> tuple[Record, ...]:
        """All records so far, in the order of telling."""
        return tuple(self._records)

    def key(self, genome: G, items: int | None = None) -> Key:
        """Returns what is equal for genomes that need not be evaluated again."""
        return items, json.dumps(self._canonical(genome))

    def knows(self, key: Key) -> bool:
        """Whether a candidate with this key has been evaluated."""
        return key in self._originals

    def is_recorded(self, candidate: Candidate[G]) -> bool:
        """Whether an earlier session has written the candidate down."""
        return candidate.id in self._history.records

    def lacks(self, candidate: Candidate[G], key: Key) -> bool:
        """Whether the candidate has to be evaluated before it can be recorded."""
        return not (self.is_recorded(candidate) or self.knows(key))

    def fresh(self, asked: Sequence[tuple[Candidate[G], Key]]) -> list[Candidate[G]]:
        """Returns the candidates whose genomes had not been evaluated, one of each genome."""
        first: dict[Key, Candidate[G]] = {}
        for candidate, key in asked:
            if not self.knows(key):
                first.setdefault(key, candidate)
        return list(first.values())

    def record(
        self,
        candidate: Candidate[G],
        key: Key,
        evaluated: Evaluated | None,
        after: int | None = None,
    ) -> Record:
        """Writes the next candidate down, or checks what an earlier session has written of it.

        Args:
            candidate: the next one in the order of telling.
            key: of its genome.
            evaluated: what its evaluation gave; not read where it `lacks` none.
            after: in a steady state how many candidates have been asked so far.
        """
        record = self._history.records.get(candidate.id)
        replayed = record is not None
        if record is not None:
            self._check(record, candidate, key, after)
        else:
            record = replace(self._new(candidate, key, evaluated), after=after)
            self._history.append(record)
        self._note(record, key)
        if self._on_record is not None:
            self._on_record(record, replayed)
        return record

    def _new(self, candidate: Candidate[G], key: Key, evaluated: Evaluated | None) -> Record:
        genome = self._encode(candidate.genome)
        original = self._originals.get(key)
        if original is not None:
            return replace(
                original, id=candidate.id, genome=genome, same_as=original.id, seconds=0.0
            )
        assert evaluated is not None, "a candidate that lacks an evaluation"
        fitness: Vector | None = None
        cases: Vector | None = None
        failure = evaluated.failure
        if evaluated.estimate is not None:
            fitness, cases = evaluated.estimate.fitness, evaluated.estimate.cases
        elif failure is None:
            with attempt() as tried:
                fitness, cases = self._objective(evaluated.scores)
            failure = tried.failure
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
            items=key[0],
            asked=None if evaluated.estimate is None else evaluated.estimate.asked,
        )

    def _check(self, record: Record, candidate: Candidate[G], key: Key, after: int | None) -> None:
        """Refuses a record that this very configuration would not have written."""
        items, original = key[0], self._originals.get(key)
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

    def _note(self, record: Record, key: Key) -> None:
        self._records.append(record)
        self._genomes.add(key[1])
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

    def result(self, stop: str, last: Sequence[Record] = ()) -> SearchResult:
        """Returns what was found; `last` is the last generation that was told."""
        failed = [r for r in self._originals.values() if r.fitness is None]
        if not self._best.ids and self._records:
            if len(failed) < len(self._originals):
                raise SearchFailed(
                    "the budget ended before a candidate was asked all items: begin another run "
                    "with budget.evaluations or budget.seconds for a whole generation at least"
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
            last=tuple(record.id for record in last),
        )


def _items(generation: int | None) -> str:
    return "all items" if generation is None else f"the items of generation {generation}"


def _order(after: int | None) -> str:
    return "with its generation" if after is None else f"alone, after {after} had been asked"
