"""What a zoo refuses, in one sentence."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from merging.weights import CheckpointError


class ZooError(CheckpointError):
    """A zoo that cannot do what was asked; names file or model, and the remedy."""


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Turns what disk and index raise into ZooError; `directory`: the zoo's."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(directory) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ZooError(
                f"{error.filename or directory} may not be written, so the zoo {directory} only "
                "reads; give yourself the right to write, or copy the zoo"
            ) from error
        raise ZooError(
            f"{error.filename or directory}: {error.strerror or error}; try again"
        ) from error
    except sqlite3.DatabaseError as error:
        raise _of_index(directory, error) from error


def _full(directory: Path) -> ZooError:
    return ZooError(
        f"the disk of the zoo {directory} is full; nothing in it was lost: free space, then try "
        "again"
    )


def _of_index(directory: Path, error: sqlite3.DatabaseError) -> ZooError:
    text, index = str(error), directory / "index.sqlite"
    if "full" in text or "I/O" in text:
        return _full(directory)
    if "readonly" in text:
        return ZooError(f"{index} may not be written, so the zoo only reads; copy it to write")
    if "unable to open" in text:
        return ZooError(f"{index} cannot be opened; see to its rights and to open files")
    if "locked" in text:
        return ZooError(f"{index} is locked by another process; wait for it, then try again")
    return ZooError(f"{index} is damaged ({text}); bring it back from a copy of the zoo")
