"""The steady state: no worker waits for a generation; every outcome is told as it comes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from search.loop.evaluation import Evaluated
from search.loop.history import History, HistoryError, Record
from search.loop.loop import Budget, SearchResult, Session
from search.objective import Objective
from search.strategy import Candidate, G, Outcome

H = TypeVar("H", contravariant=True)
S = TypeVar("S")

_WATCHED = 16
"""Candidates in a row that must all have failed before a search is given up."""


class SteadyStrategy(Protocol[S]):
    """A strategy that can be asked for one candidate while others wait for their outcomes.

    Its asks depend on its arguments and on the order of asks and tells alone.
    """

    def ask_one(self) -> Candidate[S]:
        """Returns the next candidate; any number may be asked before one is told.

        Raises:
            RuntimeError: a whole generation was asked before.
        """
        ...

    def tell_one(self, outcome: Outcome) -> None:
        """Takes the outcome of any candidate that waits for one.

        Raises:
            ValueError: it was not asked, or has been told.
        """
        ...


class WorkerPool(Protocol[H]):
    """Scores single genomes, some at a time, and gives them back in any order."""

    @property
    def places(self) -> int:
        """How many genomes it works on at the same time, at least 1."""
        ...

    def submit(self, genome: H) -> int:
        """Takes a genome to be scored; returns a ticket for it. Does not wait."""
        ...

    def next(self) -> tuple[int, Evaluated]:
        """Waits for one of the genomes to be done; returns its ticket and what it gave."""
        ...


class LocalPool(Generic[G]):
    """Scores one genome after the other, in the order in which they came.

    Args:
        score: what a genome gives.
    """

    places = 1

    def __init__(self, score: Callable[[G], Evaluated]) -> None:
        self._score = score
        self._waiting: deque[tuple[int, G]] = deque()
        self._tickets = 0

    def submit(self, genome: G) -> int:
        """Puts a genome last in the line."""
        self._tickets += 1
        self._waiting.append((self._tickets, genome))
        return self._tickets

    def next(self) -> tuple[int, Evaluated]:
        """Scores the first in the line."""
        ticket, genome = self._waiting.popleft()
        return ticket, self._score(genome)


def check_steady(strategy: object, *, many: bool) -> None:
    """Refuses strategies that cannot be asked while others wait for their outcomes.

    Args:
        strategy: freshly built.
        many: whether there may be several places.

    Raises:
        ValueError: it can only be asked for whole generations, or for one at a time; names it.
    """
    if not (hasattr(strategy, "ask_one") and hasattr(strategy, "tell_one")):
        raise ValueError(
            f"asynchronous=true: {type(strategy).__name__} learns from whole generations: choose "
            "strategy=cma, de, pso, oneplusone, random, crossover or another of theirs, or "
            "asynchronous=false"
        )
    if many and getattr(strategy, "one_at_a_time", False):
        raise ValueError(
            f"asynchronous=true: the optimizer of {type(strategy).__name__} has to be told before "
            "it can be asked again: choose another, or execution=local"
        )


def search_steadily(
    strategy: SteadyStrategy[G],
    bench: WorkerPool[G],
    objective: Objective,
    history: History,
    budget: Budget,
    *,
    encode: Callable[[G], Any],
    canonical: Callable[[G], Any] | None = None,
    on_record: Callable[[Record, bool], None] | None = None,
    stall_candidates: int = 200,
) -> SearchResult:
    """Keeps every place of the bench at work: tells each outcome as it comes, asks the next.

    The history's lines are in the order of tells, and each says how many candidates had been
    asked by then. A later session asks and tells in that very order; what was being worked on
    when the earlier one ended is asked again, with the same genomes. With one place the search
    is deterministic; with more the order of completion, and with it what is asked, is not.

    Args:
        strategy: freshly built.
        bench: scores genomes; may have another number of places than in earlier sessions.
        objective: turns scores into fitness.
        history: of this run; may hold candidates of earlier sessions.
        budget: when to stop; what is being worked on then is dropped.
        encode: genome to JSON values, for the history.
        canonical: see `search.loop.loop.search`.
        on_record: called with every record in the order of tells, and whether it came from the
            history.
        stall_candidates: so many candidates in a row whose genomes were asked before end the
            search.

    Returns:
        The result; its records are in the order of tells.

    Raises:
        SearchFailed: sixteen candidates in a row failed, or none could be scored.
        HistoryError: the history belongs to another configuration or version.
    """
    delivered = _Delivered()
    session: Session[G] = Session(
        delivered, objective, history, budget, encode, canonical or encode, on_record
    )
    flight = _Flight(strategy, bench, canonical or encode)
    recorded = deque(history.records.values())
    watched: deque[Record] = deque(maxlen=_WATCHED)
    stalled = 0
    while (stop := session.spent()) is None:
        if recorded:
            candidate = flight.recorded(recorded.popleft())
        else:
            flight.fill(_allowed(budget, session.evaluations))
            candidate, delivered.latest = flight.landed()
        (record,) = session.generation([candidate], flight.asked)
        flight.note(candidate)
        watched.append(record)
        if len(watched) == _WATCHED:
            session.check_alive(list(watched))
        strategy.tell_one(Outcome(record.id, record.fitness, record.cases))
        stalled = 0 if session.new else stalled + 1
        if stalled >= stall_candidates:
            stop = "stalled"
            break
    return session.result(stop)


def _allowed(budget: Budget, evaluations: int) -> int | None:
    """Returns how many more candidates may be evaluated; None: any number."""
    return None if budget.evaluations is None else budget.evaluations - evaluations


class _Delivered:
    """What the bench has scored, in the form in which a session takes it."""

    own_items = False
    unit = 1

    def __init__(self) -> None:
        self.latest: Evaluated | None = None

    def __call__(
        self, genomes: Sequence[Any], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what the one genome gave."""
        assert self.latest is not None
        yield self.latest


class _Flight(Generic[G]):
    """The candidates that were asked and not yet told."""

    def __init__(
        self,
        strategy: SteadyStrategy[G],
        bench: WorkerPool[G],
        canonical: Callable[[G], Any],
    ) -> None:
        self._strategy, self._bench, self._canonical = strategy, bench, canonical
        self.asked = 0
        """How many candidates were asked so far."""
        self._waiting: dict[int, tuple[Candidate[G], str]] = {}
        self._tickets: dict[int, int] = {}
        self._submitted: set[str] = set()
        self._known: set[str] = set()

    def recorded(self, record: Record) -> Candidate[G]:
        """Returns the candidate of a record, after as many asks as had been when it was told.

        Raises:
            HistoryError: it was told with its generation, or is not among those asked.
        """
        if record.after is None:
            raise HistoryError(
                f"candidate {record.id} of the history was told with its generation, this search "
                "is asynchronous: start in an empty directory"
            )
        while self.asked < record.after:
            self._ask()
        if record.id not in self._waiting:
            raise HistoryError(
                f"candidate {record.id} of the history was not asked by then; the history does "
                "not belong to this configuration: start in an empty directory"
            )
        return self._waiting[record.id][0]

    def fill(self, allowed: int | None) -> None:
        """Asks until every place has a candidate, or one needs none; hands out what is new."""
        self._submit()
        while (
            len(self._waiting) < self._bench.places
            and self._repeat() is None
            and (allowed is None or len(self._submitted) < allowed)
        ):
            self._ask()
            self._submit()

    def landed(self) -> tuple[Candidate[G], Evaluated | None]:
        """Returns a candidate that is done; None: its genome had been evaluated before."""
        repeat = self._repeat()
        if repeat is not None:
            return repeat, None
        ticket, evaluated = self._bench.next()
        return self._waiting[self._tickets.pop(ticket)][0], evaluated

    def note(self, candidate: Candidate[G]) -> None:
        """Takes a candidate out of the flight: it has a record now."""
        _, key = self._waiting.pop(candidate.id)
        self._submitted.discard(key)
        self._known.add(key)

    def _ask(self) -> None:
        candidate = self._strategy.ask_one()
        self.asked += 1
        self._waiting[candidate.id] = candidate, json.dumps(self._canonical(candidate.genome))

    def _submit(self) -> None:
        """Hands out every genome that has neither been evaluated nor handed out."""
        for candidate, key in self._waiting.values():
            if key not in self._known and key not in self._submitted:
                self._submitted.add(key)
                self._tickets[self._bench.submit(candidate.genome)] = candidate.id

    def _repeat(self) -> Candidate[G] | None:
        """Returns the first candidate whose genome has been evaluated; None: there is none."""
        known = self._known
        return next((one for one, key in self._waiting.values() if key in known), None)
