"""Progress in bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from experiments.runs.progress import ProgressBar

_MB = 1_000_000


@contextmanager
def megabytes(total_bytes: int, what: str) -> Iterator[tuple[ProgressBar, Callable[[int], None]]]:
    """Yields a bar of megabytes, and what updates it by bytes."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        bar.update(done // _MB - before // _MB)

    with ProgressBar(-(-total_bytes // _MB), what, "megabyte") as bar:
        yield bar, count
