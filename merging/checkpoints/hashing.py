"""sha256 of large files, remembered on disk between runs."""

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from merging.files import cache_dir, joint_sha256, write_text
from merging.zoo.pointers import follow

logger = logging.getLogger(__name__)

_READ_BYTES = 16 * 2**20
_SETTLED_S = 2.0


def files_sha256(files: Sequence[Path]) -> str:
    """Returns the identity of `files` by their bytes; see `joint_sha256`."""
    return joint_sha256({file.name: file_sha256(file) for file in files})


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's bytes, from the cache where path, size and time agree.

    A pointer into a zoo stands for the file that it names.
    """
    path = path.resolve()
    if (pointer := follow(path)) is not None:
        return pointer.sha256
    stat = path.stat()
    key = f"{stat.st_size} {stat.st_mtime_ns} {path}"
    entry = cache_dir() / "sha256" / hashlib.sha256(key.encode()).hexdigest()
    remembered = _recall(entry, key)
    if remembered is not None:
        return remembered
    digest = _digest(path)
    # A file changed just now may change again within the clock's resolution, unseen.
    if time.time() - stat.st_mtime > _SETTLED_S:
        _remember(entry, f"{digest} {key}\n")
    return digest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _recall(entry: Path, key: str) -> str | None:
    """Returns the digest in `entry`, None unless the entry is whole and speaks of `key`."""
    try:
        digest, _, stored_key = entry.read_text(encoding="utf-8").rstrip("\n").partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    intact = len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return digest if intact and stored_key == key else None


def _remember(entry: Path, line: str) -> None:
    """Writes `entry` at once or not at all; a cache that cannot be written is no error."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_text(entry, line)
    except OSError as error:
        logger.debug("sha256 cache %s cannot be written: %s", entry.parent, error)
