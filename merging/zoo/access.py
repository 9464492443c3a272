"""Who may use a zoo: made once, of one version, written by one process at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from merging.files import write_text
from merging.zoo import index, keeping
from merging.zoo.errors import ZooError, explained
from merging.zoo.packs import FOLDER

logger = logging.getLogger(__name__)

FORMAT = "evomerge zoo 1"

_FILE, _LOCK = "format", "lock"


def create(directory: Path) -> None:
    """Makes an empty zoo where there is none; raises ZooError where something else lies."""
    if (directory / _FILE).is_file():
        return
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _check_empty(directory)  # before the lock's file lies in it
        with FileLock(directory / _LOCK):
            _fill(directory)


def _check_empty(directory: Path) -> None:
    own = {_LOCK, FOLDER, "views", index.FILE, _FILE}
    found = [path for path in directory.iterdir() if not path.name.startswith(".")]
    if strange := [path for path in found if path.name not in own]:
        raise ZooError(
            f"{directory} holds {strange[0].name}, so it becomes no zoo; name an empty one"
        )


def _fill(directory: Path) -> None:
    (directory / FOLDER).mkdir(exist_ok=True)
    if not (directory / index.FILE).is_file():
        index.create(directory)
    write_text(directory / _FILE, f"{FORMAT}\n")  # the last: without it there is no zoo


def check_format(directory: Path) -> None:
    """Raises ZooError where there is no zoo, or one of another version."""
    try:
        found = (directory / _FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(
            f"{directory} is no zoo; name one that `evomerge zoo add` has made"
        ) from error
    if found != FORMAT:
        raise ZooError(
            f"{directory} is of another version ({found[:40]!r}, not {FORMAT!r}); use the "
            "evomerge that made it"
        )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lets one process write at a time; removes what a killed one left; raises ZooError."""
    with explained(directory):
        lock = FileLock(directory / _LOCK)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logger.info("waiting for another process that writes to %s", directory)
            lock.acquire()
        try:
            keeping.remove_orphans(directory)
            yield
        finally:
            lock.release()
