"""Progress of a search: the best fitness so far, and an honest time to the end."""

import statistics
from collections.abc import Sequence

from experiments.reports.table import duration
from search.loop.history import Record
from search.loop.session import Budget

_TIMED = 3
"""Evaluations that must have been timed before a remaining time is named."""


class Progress:
    """What a search has reached so far.

    Args:
        names: of the parts of the fitness.
        static: name and fitness of the best static merge; None: none is known, or it has parts.
    """

    def __init__(
        self, budget: Budget, names: Sequence[str], static: tuple[str, float] | None = None
    ) -> None:
        self._budget, self._names, self._static = budget, names, static
        self._best: list[float] = []
        self._seconds: list[float] = []
        self._failures = 0

    def add(self, record: Record) -> None:
        """Counts one candidate."""
        self._seconds.append(record.seconds)
        if record.fitness is None:
            self._failures += 1
        else:
            values = record.fitness.tolist()
            self._best = [max(pair) for pair in zip(self._best or values, values, strict=True)]

    def remaining_s(self) -> float | None:
        """Returns the seconds to the end of the budget at the median pace so far.

        None: too few evaluations to tell, or the end is not known. A target may end the search
        earlier. The median, because one stalled evaluation says nothing of the rest.
        """
        if len(self._seconds) < _TIMED:
            return None
        ends = []
        if self._budget.evaluations is not None:
            left = self._budget.evaluations - len(self._seconds)
            ends.append(left * statistics.median(self._seconds))
        if self._budget.seconds is not None:
            ends.append(self._budget.seconds - sum(self._seconds))
        return max(0.0, min(ends)) if ends else None

    def note(self) -> str:
        """Returns best fitness, failures and time left in words."""
        parts = [f"best {self._best_text()}" if self._best else "none scored yet"]
        if self._failures:
            parts.append(f"{self._failures} failed")
        if (remaining := self.remaining_s()) is not None:
            parts.append(f"about {duration(remaining)} left")
        return ", ".join(parts)

    def _best_text(self) -> str:
        if len(self._best) == 1:
            other = "" if self._static is None else " against {1:.4f} of {0}".format(*self._static)
            return f"{self._best[0]:.4f}{other}"
        return " ".join(f"{n} {v:.4f}" for n, v in zip(self._names, self._best, strict=True))
