"""What is kept for the user, beside all output directories: files that several runs add to."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


def state_folder() -> Path:
    """Returns $EVOMERGE_STATE or ~/.local/state/evomerge."""
    folder = os.environ.get("EVOMERGE_STATE") or Path.home() / ".local" / "state" / "evomerge"
    return Path(folder)


@contextmanager
def appended(path: Path) -> Iterator[TextIO]:
    """Yields the file at its end, line by line and locked; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        with suppress(OSError):  # no locks on this file system: a line is still one write
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def whole_lines(path: Path) -> list[bytes]:
    """Returns the lines; half a line at the end is of a process that was killed."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
