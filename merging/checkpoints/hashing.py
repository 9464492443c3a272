"""sha256 of large files, remembered on disk between runs, and whose values are known."""

import hashlib
import logging
import mmap
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread

import torch

from merging.files import cache_dir, joint_sha256, write_text
from merging.zoo.pointers import follow

logger = logging.getLogger(__name__)

_READ_BYTES = 64 * 2**20
_LARGE_BYTES = 2**24
"""Of a file from which on a thread is worth starting."""
_SETTLED_S = 2.0
_begun: dict[str, Future[str]] = {}
"""What is being hashed, or is known of what this process wrote, by `_key`."""


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


def begin_sha256(files: Iterable[Path]) -> None:
    """Hashes files in threads, for whose end `file_sha256` waits, and the end of a process not.

    For the time until then: whoever imports a model's class leaves other processors idle.
    """
    waiting: list[tuple[Path, Future[str]]] = []
    for path in (file.resolve() for file in files):
        stat = path.stat()
        key = _key(path, stat)
        new = key not in _begun and _recall(_entry(key), key) is None
        if new and stat.st_size >= _LARGE_BYTES:
            _begun[key] = Future()
            waiting.append((path, _begun[key]))

    def work() -> None:
        while waiting:
            path, future = waiting.pop()
            try:
                future.set_result(_digest(path))
            except OSError as error:
                future.set_exception(error)

    for _ in range(min(len(waiting), torch.get_num_threads())):
        Thread(target=work, daemon=True).start()


def know_sha256(path: Path, digest: str) -> None:
    """Tells the sha256 of a file that this process has just written."""
    future: Future[str] = Future()
    future.set_result(digest)
    path = path.resolve()
    _begun[_key(path, path.stat())] = future


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
    key = _key(path, stat)
    entry = _entry(key)
    remembered = _recall(entry, key)
    if remembered is not None:
        on_bytes(stat.st_size)
        return remembered
    if key in _begun:
        digest = _begun[key].result()
        on_bytes(stat.st_size)
    else:
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


def _key(path: Path, stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {path}"


def _entry(key: str) -> Path:
    return cache_dir() / "sha256" / hashlib.sha256(key.encode()).hexdigest()


def _digest(path: Path, on_bytes: Callable[[int], object] = lambda size: None) -> str:
    """Returns the sha256 of a file.

    It is mapped: nothing is copied, and the interpreter's lock is asked for between blocks alone.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:  # of which there is no map
            return digest.hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
            held.madvise(mmap.MADV_SEQUENTIAL)
            for at in range(0, len(held), _READ_BYTES):
                with memoryview(held) as whole, whole[at : at + _READ_BYTES] as block:
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
