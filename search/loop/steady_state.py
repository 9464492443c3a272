"""The steady state: no worker waits for a generation; every outcome is told as it comes."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from search.loop.evaluation import Batch, Evaluated
from search.loop.history import History, HistoryError, Record
from search.loop.pool import Pool
from search.loop.session import Budget, Key, SearchResult, Session
from search.objective import Objective
from search.strategy import Candidate, G, Outcome

S = TypeVar("S")

_WATCHED = 16
"""Candidates in a row that must all have failed before a search is given up."""


@runtime_checkable
class SteadyStrategy(Protocol[S]):
    """A strategy that can be asked for one candidate while others wait for their outcomes.

    Its asks depend on its arguments and on the order of asks and tells alone.
    """

    @property
    def one_at_a_time(self) -> bool:
        """Whether it cannot be asked again before it is told."""
        ...

    def ask_one(self) -> Candidate[S]:
        """Returns the next candidate; any number may be asked before one is told."""
        ...

    def tell_one(self, outcome: Outcome) -> None:
        """Takes the outcome of any candidate that waits for one."""
        ...


def check_steady(strategy: object, *, many: bool) -> None:
    """Raises ValueError for a strategy that learns from whole generations.

    And, if `many` candidates may be scored at the same time, for one that takes one at a time.
    """
    if not isinstance(strategy, SteadyStrategy):
        raise ValueError(f"{type(strategy).__name__} learns from whole generations")
    if many and strategy.one_at_a_time:
        raise ValueError(
            f"the optimizer of {type(strategy).__name__} has to be told before it can be asked "
            "again"
        )


def search_steadily(
    strategy: SteadyStrategy[G],
    pool: Pool[Batch[G], Sequence[Evaluated]],
    objective: Objective,
    history: History,
    budget: Budget,
    *,
    encode: Callable[[G], Any],
    canonical: Callable[[G], Any] | None = None,
    on_record: Callable[[Record, bool], None] | None = None,
    stall_candidates: int = 200,
) -> SearchResult:
    """Keeps the whole pool at work: tells each outcome as it comes, asks the next.

    The history's lines are in the order of tells, and each says how many candidates had been
    asked by then. A later session asks and tells in that very order; what was being worked on
    when the earlier one ended is asked again, with the same genomes. A pool of size 1 makes the
    search deterministic; with more the order of completion, and what is asked, is not.

    Records are in the order of tells. Arguments that are not named are those of
    `search.loop.generational.search`.

    Args:
        pool: scores batches of one genome; may have another size than in earlier sessions.
        budget: when to stop; what is being worked on then is dropped.
        stall_candidates: so many candidates in a row whose genomes were asked before end the
            search.

    Raises:
        SearchFailed: sixteen candidates in a row failed, or none could be scored.
        HistoryError: the history belongs to another configuration or version.
    """
    session: Session[G] = Session(
        objective, history, budget, encode, canonical or encode, on_record
    )
    flight = _Flight(strategy, pool, session)
    recorded = deque(history.records.values())
    watched: deque[Record] = deque(maxlen=_WATCHED)
    stalled = 0
    while (stop := session.spent()) is None:
        known = session.genomes
        if recorded:
            candidate, key, evaluated = flight.recorded(recorded.popleft())
        else:
            flight.fill(budget.evaluations)
            candidate, key, evaluated = flight.landed()
        record = session.record(candidate, key, evaluated, flight.asked)
        watched.append(record)
        if len(watched) == _WATCHED:
            session.check_alive(list(watched))
        strategy.tell_one(Outcome(record.id, record.fitness, record.cases))
        stalled = 0 if session.genomes > known else stalled + 1
        if stalled >= stall_candidates:
            stop = "stalled"
            break
    return session.result(stop)


class _Flight(Generic[G]):
    """The candidates that were asked and not yet told."""

    def __init__(
        self,
        strategy: SteadyStrategy[G],
        pool: Pool[Batch[G], Sequence[Evaluated]],
        session: Session[G],
    ) -> None:
        self._strategy = strategy
        self._pool = pool
        self._session = session
        self.asked = 0
        self._waiting: dict[int, tuple[Candidate[G], Key]] = {}
        self._tickets: dict[int, int] = {}
        self._submitted: set[Key] = set()

    def recorded(self, record: Record) -> tuple[Candidate[G], Key, None]:
        """Returns the candidate of a record, after as many asks as had been when it was told."""
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
        return *self._waiting.pop(record.id), None

    def fill(self, evaluations: int | None) -> None:
        """Asks until the pool is full, or a candidate needs no evaluation; hands out what is new.

        Args:
            evaluations: most of the whole search; None: any number.
        """
        self._submit()
        most = math.inf if evaluations is None else evaluations - self._session.evaluations
        while (
            len(self._waiting) < self._pool.size
            and len(self._submitted) < most
            and self._repeat() is None
        ):
            self._ask()
            self._submit()

    def landed(self) -> tuple[Candidate[G], Key, Evaluated | None]:
        """Takes a candidate that is done; None: its genome had been evaluated before."""
        repeat = self._repeat()
        if repeat is not None:
            return *self._waiting.pop(repeat), None
        ticket, (evaluated,) = self._pool.next()
        candidate, key = self._waiting.pop(self._tickets.pop(ticket))
        self._submitted.remove(key)
        return candidate, key, evaluated

    def _ask(self) -> None:
        candidate = self._strategy.ask_one()
        self.asked += 1
        self._waiting[candidate.id] = candidate, self._session.key(candidate.genome)

    def _submit(self) -> None:
        """Hands out every genome that has neither been evaluated nor handed out."""
        for candidate, key in self._waiting.values():
            if not self._session.knows(key) and key not in self._submitted:
                self._submitted.add(key)
                self._tickets[self._pool.submit(Batch([candidate.genome]))] = candidate.id

    def _repeat(self) -> int | None:
        """Returns the first candidate whose genome has been evaluated; None: there is none."""
        known = (i for i, (_, key) in self._waiting.items() if self._session.knows(key))
        return next(known, None)
