"""Progress of a search: evaluations, the best fitness so far, and an honest time to the end."""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from tqdm import tqdm

from experiments.reports.table import duration
from search.loop.history import Record
from search.loop.session import Budget

logger = logging.getLogger(__name__)

_TIMED = 3
"""Evaluations that must have been timed before a remaining time is named."""


class Progress:
    """A bar on a terminal; elsewhere a log line every so often, and one at the end.

    Use it as a context manager around the search.

    Args:
        budget: of the search; its evaluations are the length of the bar.
        names: of the parts of the fitness.
        every_s: seconds between two log lines.
        stream: where the bar is drawn, if it is a terminal; None: standard error.
        clock: seconds from any start; replaced in tests.
    """

    def __init__(
        self,
        budget: Budget,
        names: Sequence[str],
        *,
        every_s: float = 30.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget, self._names = budget, names
        self._every_s, self._clock = every_s, clock
        stream = sys.stderr if stream is None else stream
        self._logs = not stream.isatty()
        self._last_line = clock()
        self._best: list[float] = []
        self._seconds: list[float] = []
        self._failures = 0
        self._bar = tqdm(
            total=budget.evaluations,
            desc="search",
            unit="evaluation",
            file=stream,
            disable=self._logs,
            dynamic_ncols=True,
            bar_format="{desc} {n_fmt} evaluations in {elapsed}{postfix}"
            if budget.evaluations is None
            else "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def __enter__(self) -> Progress:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the bar, or says the last line."""
        self._bar.close()
        if self._logs and self._seconds:
            logger.info("%s", self.line())

    def update(self, record: Record, replayed: bool) -> None:
        """Counts one candidate; a repeat of an earlier one costs nothing and is not counted."""
        if record.same_as is not None:
            return
        self._seconds.append(record.seconds)
        if record.fitness is None:
            self._failures += 1
        else:
            values = record.fitness.tolist()
            self._best = [max(pair) for pair in zip(self._best or values, values, strict=True)]
        self._bar.set_postfix_str(self._state(), refresh=False)
        self._bar.update()
        if self._logs and not replayed and self._clock() - self._last_line >= self._every_s:
            self._last_line = self._clock()
            logger.info("%s", self.line())

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

    def line(self) -> str:
        """Returns the state as one line, for a log."""
        total = self._budget.evaluations
        of = "" if total is None else f"/{total}"
        return f"{len(self._seconds)}{of} evaluations, {self._state()}"

    def _state(self) -> str:
        parts = [f"best {self._best_text()}" if self._best else "none scored yet"]
        if self._failures:
            parts.append(f"{self._failures} failed")
        remaining = self.remaining_s()
        if remaining is not None:
            parts.append(f"about {duration(remaining)} left")
        return ", ".join(parts)

    def _best_text(self) -> str:
        if len(self._best) == 1:
            return f"{self._best[0]:.4f}"
        return " ".join(f"{n} {v:.4f}" for n, v in zip(self._names, self._best, strict=True))
