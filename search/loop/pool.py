"""Tasks in, results out in any order: one interface for this process and for workers elsewhere."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Pool(Protocol[T_contra, R_co]):
    """Works on tasks; what a task gives depends on the task alone, not on who works on it."""

    @property
    def size(self) -> int:
        """How many tasks it works on at the same time, at least 1."""
        ...

    def submit(self, task: T_contra) -> int:
        """Takes a task; returns a ticket for it. Does not wait."""
        ...

    def next(self) -> tuple[int, R_co]:
        """Waits for one of the tasks to be done; returns its ticket and its result."""
        ...

    def drop(self) -> None:
        """Forgets all tasks; those that were not begun are never worked on."""
        ...


@dataclass(eq=False)
class TaskQueue(Generic[T]):
    """What the pools of this process have in common: they work when `next` is called, in turn."""

    _tasks: dict[int, T] = field(default_factory=dict, init=False, repr=False)
    _tickets: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False)
    size = 1

    def submit(self, task: T) -> int:
        """Puts a task last in the line."""
        ticket = next(self._tickets)
        self._tasks[ticket] = task
        return ticket

    def drop(self) -> None:
        """Forgets the line."""
        self._tasks.clear()

    def _take(self) -> tuple[int, T]:
        """Takes the first of the line."""
        ticket = next(iter(self._tasks))
        return ticket, self._tasks.pop(ticket)


def run_all(pool: Pool[T, R_co], tasks: Sequence[T]) -> list[R_co]:
    """Returns the results of all tasks, in the order of the tasks."""
    tickets = [pool.submit(task) for task in tasks]
    results = dict(pool.next() for _ in tickets)
    return [results[ticket] for ticket in tickets]
