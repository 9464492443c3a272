"""sha256 of large files, remembered on disk between runs, and whose values are known."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from merging.files import cache_dir, joint_sha256, write_text
from merging.zoo.pointers import follow

logger = logging.getLogger(__name__)

_READ_BYTES = 16 * 2**20
_SETTLED_S = 2.0


def files_sha256(
    files: Sequence[Path], on_bytes: Callable[[int], object] = lambda size: None
) -> str:
    """Returns the identity of `files` by their bytes; see `joint_sha256`.

    Args:
        on_bytes: called, from several threads, with the size of what was read or is remembered.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as each:
        digests = each.map(partial(file_sha256, on_bytes=on_bytes), files)
        return joint_sha256({file.name: sha for file, sha in zip(files, digests, strict=True)})


def file_sha256(path: Path, on_bytes: Callable[[int], object] = lambda size: None) -> str:
    """Returns the sha256 of a file's bytes, from the cache where path, size and time agree.

    A pointer into a zoo stands for the file that it names. The name of a blob in the Hugging Face
    cache is no proof: who copies a file over a snapshot's link writes into the blob.
    """
    path = path.resolve()
    stat = path.stat()
    if (pointer := follow(path)) is not None:
        on_bytes(stat.st_size)
        return pointer.sha256
    key = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {path}"
    entry = cache_dir() / "sha256" / hashlib.sha256(key.encode()).hexdigest()
    remembered = _recall(entry, key)
    if remembered is not None:
        on_bytes(stat.st_size)
        return remembered
    digest = _digest(path, on_bytes)
    # A file changed just now may change again within the clock's resolution, unseen.
    if time.time() - stat.st_mtime > _SETTLED_S:
        _remember(entry, f"{digest} {key}\n")
    return digest


def known_finite(sha256: str, names: Iterable[str]) -> bool:
    """Whether `remember_finite` was told of these tensors of the files with this identity."""
    return _recall(_finite_entry(sha256, names), "finite") == sha256


def remember_finite(sha256: str, names: Iterable[str]) -> None:
    """Keeps that no value of these tensors is NaN or infinite."""
    _remember(_finite_entry(sha256, names), f"{sha256} finite\n")


def _finite_entry(sha256: str, names: Iterable[str]) -> Path:
    key = "\n".join([sha256, *sorted(names)])
    return cache_dir() / "finite" / hashlib.sha256(key.encode()).hexdigest()


def _digest(path: Path, on_bytes: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
            on_bytes(len(block))
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
