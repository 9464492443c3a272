"""Progress of long work: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

_SHARE = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
_LONG_S = 2.0
_MB = 1_000_000
_SILENT_S = 60.0
_COUNT = "{desc} {n_fmt} {unit}s in {elapsed}{postfix}"


class ProgressBar:
    """A bar on a terminal; in a log or a pipe one line at most every `every_s` seconds.

    Use it as a context manager around the work. In a log work of less than two seconds says
    nothing; else the last line tells where it ended. Where a unit takes long, a line a minute says
    that the work goes on. Any thread may count.

    Args:
        total: how much there is to do, in units; None: not known.
        what: is being done.
        unit: of the work, singular.
        shown: False: neither bar nor lines.
        leave: let a full bar stand on the terminal.
        estimates: names the time left at the mean pace; False: the notes say it.
        every_s: seconds between two lines.
        silent_s: longest time without a line.
        stream: where both go; None: standard error.
        clock: seconds from any start; replaced in tests.
    """

    def __init__(
        self,
        total: int | None,
        what: str,
        unit: str,
        *,
        shown: bool = True,
        leave: bool = False,
        estimates: bool = True,
        every_s: float = 10.0,
        silent_s: float = _SILENT_S,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit = total, unit
        self._estimates = estimates
        self._stream = sys.stderr if stream is None else stream
        terminal = self._stream.isatty()
        self._writes_lines = shown and not terminal
        self._every_s, self._silent_s, self._clock = every_s, silent_s, clock
        self._lock, self._ended = Lock(), Event()
        self._what, self._note = what, ""
        self._done = self._written = 0
        self._began = self._last_line = clock()
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=unit,
            leave=leave,
            file=self._stream,
            disable=not (shown and terminal) or total == 0,
            dynamic_ncols=True,
            bar_format=None if estimates else _COUNT if total is None else _SHARE,
        )

    def __enter__(self) -> ProgressBar:
        """Returns itself."""
        if self._writes_lines and self._total != 0:
            Thread(target=self._break_silence, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the bar, or writes where the lines ended."""
        self._ended.set()
        self._bar.close()
        long = self._writes_lines and self._clock() - self._began >= _LONG_S
        with self._lock:
            if self._written < self._done and (self._written or long):
                self._write_line()

    def describe(self, what: str) -> None:
        """Says what is being done from now on."""
        self._what = what
        self._bar.set_description(what)

    def update(self, count: int = 1, note: str = "") -> None:
        """Counts units that are done; `note` says how it went, for example a loss."""
        with self._lock:
            self._done += count
            self._note = note
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            if self._writes_lines and self._clock() - self._last_line >= self._every_s:
                self._write_line()

    def _break_silence(self) -> None:
        while not self._ended.wait(self._silent_s):
            with self._lock:
                if self._clock() - self._last_line >= self._silent_s:
                    self._write_line()

    def _write_line(self) -> None:
        self._last_line, self._written = self._clock(), self._done
        of = "" if self._total is None else f"/{self._total}"
        parts = [f"{self._what}: {self._done}{of} {self._unit}s"]
        if self._note:
            parts.append(self._note)
        if not self._done:
            parts.append(f"{tqdm.format_interval(self._last_line - self._began)} so far")
        if self._estimates and self._total is not None and 0 < self._done < self._total:
            pace_s = (self._last_line - self._began) / self._done
            left = tqdm.format_interval(pace_s * (self._total - self._done))
            parts.append(f"about {left} left")
        print(", ".join(parts), file=self._stream, flush=True)


@contextmanager
def megabytes(total_bytes: int, what: str) -> Iterator[tuple[ProgressBar, Callable[[int], None]]]:
    """Yields a bar of megabytes, and what updates it by bytes, from any thread."""
    done, lock = 0, Lock()

    def count(more: int) -> None:
        nonlocal done
        with lock:
            before, done = done, done + more
            bar.update(-(-done // _MB) + -before // _MB)  # both rounded up, as the total is

    with ProgressBar(-(-total_bytes // _MB), what, "megabyte") as bar:
        yield bar, count
