"""Workers that may die at any time, and tasks that none of them may lose."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evaluators.requests import TransientFailure
from experiments.runs.errors import UserError
from experiments.setup.execution import WorkerSpec

log = logging.getLogger(__name__)

_LOOK_S = 1.0  # how often limits are looked at while nothing happens
_QUIET_S = 60.0  # after so long without a result the log says what is waited for
_LOSSES = 5  # workers that one candidate may cost, or one seat before it has one that is ready


class WorkerLost(RuntimeError):  # noqa: N818
    """A worker's process or node is gone, and what it was doing with it."""


class Cluster(Protocol):
    """Starts processes somewhere and calls them; handles and references are its own."""

    def start(self) -> Any:
        """Returns a new worker at once; its process may have to wait for room."""
        ...

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Returns a reference to what a worker's method will return. Does not wait."""
        ...

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Returns the references that are done, after at most `seconds`."""
        ...

    def result(self, reference: Any) -> Any:
        """Returns what a call gave; raises what it raised, or WorkerLost."""
        ...

    def stop(self, worker: Any) -> None:
        """Ends a worker's process, if there is one."""
        ...

    def describe(self) -> str:
        """Returns what there is to be had, for a message."""
        ...


@dataclass
class _Seat:
    """A seat of the fleet: the worker that holds it may change."""

    number: int
    worker: Any
    reference: Any = None
    ticket: int | None = None
    holds: Any = None
    since: float = 0.0
    limit_s: float = 0.0
    ready: bool = False
    replaced: bool = False
    losses: int = 0
    where: str = "no process yet"


@dataclass
class _Task:
    method: str
    arguments: tuple[Any, ...]
    about: Any
    candidates: int
    losses: int = 0


class Fleet:
    """Hands tasks to free workers, puts new workers in the place of dead ones.

    A task whose worker dies, or finds that it can score nothing now, is handed to another. What
    a genome gives does not depend on who scores it, so neither do the results.

    Args:
        wait_s: most seconds without any worker.
        candidate_s: most seconds of one candidate; a worker that takes longer for each of those
            that it was handed together is replaced.
        clock: seconds; only differences count.
    """

    def __init__(
        self,
        cluster: Cluster,
        size: int,
        *,
        wait_s: float,
        candidate_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._wait_s = wait_s
        self._candidate_s = candidate_s
        self._spec: WorkerSpec | None = None
        self._seats = [_Seat(number, None) for number in range(size)]
        self._tasks: dict[int, _Task] = {}
        self._queue: deque[int] = deque()
        self._tickets = 0
        self._without_since = self._heard = self._began = clock()

    @property
    def size(self) -> int:
        """How many workers there are, or will be again."""
        return len(self._seats)

    @property
    def processes(self) -> Mapping[int, str]:
        """Number of every worker that is ready to ``pid PID on HOST``."""
        return {seat.number: seat.where for seat in self._seats if seat.ready}

    def use(self, spec: WorkerSpec) -> None:
        """Lets every worker make its ingredients of `spec`, and forgets all tasks."""
        self.drop()
        self._spec = spec
        self._began = self._without_since = self._heard = self._clock()
        for seat in self._seats:
            if seat.worker is None:
                self._start(seat)
            else:
                self._prepare(seat)

    def submit(self, method: str, *arguments: Any, about: Any = None, candidates: int = 1) -> int:
        """Takes a task for one worker; returns its ticket.

        Args:
            about: genome that the worker holds from then on; None: none that it could use again.
            candidates: how many the task scores.
        """
        if not self._tasks:
            self._heard = self._clock()  # nobody was waited for until now
        self._tickets += 1
        self._tasks[self._tickets] = _Task(method, arguments, about, candidates)
        self._queue.append(self._tickets)
        return self._tickets

    def next(self) -> tuple[int, Any]:
        """Waits for a task to be done; returns its ticket and what the method returned.

        Raises:
            UserError: a worker cannot make its ingredients, there is none for too long, or one
                task has cost several of them; says what to do.
        """
        assert self._tasks, "nothing was submitted"
        while True:
            self._assign()
            at_work = {id(seat.reference): seat for seat in self._seats if seat.reference}
            references = [seat.reference for seat in at_work.values()]
            for reference in self._cluster.wait(references, _LOOK_S):
                answered = self._answered(at_work[id(reference)])
                if answered is not None:
                    return answered
            self._look_at_limits()

    def drop(self) -> None:
        """Forgets all tasks; what workers are doing is finished and not looked at."""
        self._tasks.clear()
        self._queue.clear()

    def close(self) -> None:
        """Ends all workers."""
        self.drop()
        for seat in self._seats:
            if seat.worker is not None:
                self._cluster.stop(seat.worker)
            seat.worker = seat.reference = None
            seat.ready = False

    def _start(self, seat: _Seat) -> None:
        seat.worker, seat.where = self._cluster.start(), "no process yet"
        self._prepare(seat)

    def _prepare(self, seat: _Seat) -> None:
        seat.reference = self._cluster.call(seat.worker, "prepare", self._spec)
        seat.ticket, seat.holds = None, None
        seat.since, seat.ready = self._clock(), False

    def _assign(self) -> None:
        """Gives tasks to free workers, first those whose genome one of them holds, to that one."""
        free = [seat for seat in self._seats if seat.ready and seat.reference is None]
        while free and self._queue:
            held = [seat.holds for seat in free]
            ticket = min(self._queue, key=lambda ticket: self._tasks[ticket].about not in held)
            self._queue.remove(ticket)
            task = self._tasks[ticket]
            seat = min(free, key=lambda seat: seat.holds != task.about)
            free.remove(seat)
            seat.ticket, seat.since, seat.holds = ticket, self._clock(), task.about
            seat.limit_s = self._candidate_s * task.candidates
            seat.reference = self._cluster.call(seat.worker, task.method, *task.arguments)

    def _answered(self, seat: _Seat) -> tuple[int, Any] | None:
        """Takes a worker's answer; returns what it says of a task that is still wanted."""
        try:
            answer = self._cluster.result(seat.reference)
        except (WorkerLost, TransientFailure) as lost:  # a new process has its memory back
            self._replace(seat, str(lost))
            return None
        ticket, seat.reference, seat.ticket = seat.ticket, None, None
        self._heard = self._clock()
        if ticket is None:
            self._prepared(seat, answer)
            return None
        if self._tasks.pop(ticket, None) is None:
            return None
        return ticket, answer

    def _prepared(self, seat: _Seat, answer: Mapping[str, Any]) -> None:
        host, refused = answer["host"], answer["refused"]
        if refused is not None:
            sentence = f"worker {seat.number} on node {host} cannot start: {refused}"
            others = [other for other in self._seats if other is not seat]
            if not (seat.replaced and others):
                raise UserError(sentence)
            log.warning("%s; going on with %d", sentence, len(others))
            self._cluster.stop(seat.worker)
            self._seats = others
            return
        seat.ready, seat.losses = True, 0
        seat.where = f"pid {answer['pid']} on {host}"
        waited_s = self._clock() - seat.since
        log.info("worker %d is ready, %s, after %.0f s", seat.number, seat.where, waited_s)

    def _replace(self, seat: _Seat, reason: str) -> None:
        """Starts a new worker in the place of one that is lost, its task being the next one."""
        name = f"worker {seat.number} ({seat.where})"
        log.warning("%s is lost: %s; a new one is started", name, reason)
        self._cluster.stop(seat.worker)
        task = None if seat.ticket is None else self._tasks.get(seat.ticket)
        if seat.ticket is not None and task is not None:
            self._queue.appendleft(seat.ticket)
            task.losses += 1
            if task.losses >= _LOSSES:
                raise UserError(
                    f"a candidate has cost {task.losses} workers, the last: {reason}; "
                    "look at the memory of the nodes, set fewer execution.workers, or begin "
                    "another run with together=null"
                )
        if not seat.ready:
            seat.losses += 1
            if seat.losses >= _LOSSES:
                raise UserError(
                    f"worker {seat.number} was lost {seat.losses} times before it was ready, the "
                    f"last time: {reason}; evomerge must be installed on every node, with memory "
                    "for base, experts and model"
                )
        if not any(other.ready for other in self._seats if other is not seat):
            self._without_since = self._clock()
        seat.replaced = True
        self._start(seat)

    def _look_at_limits(self) -> None:
        now = self._clock()
        for seat in self._seats:
            if seat.ticket is not None and now - seat.since > seat.limit_s:
                self._replace(seat, f"no answer for {seat.limit_s:.0f} s")
        ready = sum(seat.ready for seat in self._seats)
        if not ready and now - self._without_since > self._wait_s:
            raise UserError(
                f"no worker was ready within {self._wait_s:.0f} s ({self._cluster.describe()}): "
                "ask for less with execution.cpus_per_worker and gpus_per_worker, add nodes, or "
                "wait longer with execution.wait_s"
            )
        if now - self._heard > _QUIET_S:
            self._heard = now
            at_work = [seat for seat in self._seats if seat.ticket is not None]
            resources = self._cluster.describe()
            log.info("%d of %d workers are ready (%s)", ready, len(self._seats), resources)
            for seat in at_work:
                log.info("%.0f s at work on %s", now - seat.since, seat.where)
