"""Raw bytes of blocks: decoded where they are to lie; bases are kept for their kin."""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merging.zoo import codec, index
from merging.zoo.errors import ZooError
from merging.zoo.index import Row
from merging.zoo.layout import Pieces, ends_of
from merging.zoo.packs import FOLDER, PackReader

CACHE_BYTES = 2**29
"""512 MiB of raw blocks that others are differences to, or that are read in parts."""

Bytes = NDArray[np.uint8]

_LINE = 64
"""Bytes of a cache line."""


def empty(size: int) -> Bytes:
    """Returns memory at the beginning of a cache line.

    numpy's, which asks for huge pages where there is much of it: to touch torch's for the first
    time takes as long as to decode into it.
    """
    raw = np.empty(size + _LINE, np.uint8)
    begin = -raw.ctypes.data % _LINE
    return raw[begin : begin + size]


class _Scratch(threading.local):
    """Memory for stored blocks, used again: to get new memory takes as long as to decode."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def of(self, size: int) -> Bytes:
        """Returns so many bytes, until it is called again by the same thread."""
        if len(self._memory) < size:
            self._memory = empty(size)
        return self._memory[:size]


def threads() -> int:
    """Returns how many threads work on blocks: the cores that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def blocks_of(directory: Path) -> "Blocks":
    """Returns the reader of a zoo's blocks, one in a process.

    So that all models opened from a zoo share its cache: of experts that are differences to one
    base, that is decoded once.

    Args:
        directory: absolute.
    """
    return _of_process(directory, os.getpid())


def forget() -> None:
    """Lets go of all blocks that `blocks_of` keeps in this process, and of its open packs."""
    _of_process.cache_clear()


@lru_cache(maxsize=4)
def _of_process(directory: Path, process: int) -> "Blocks":
    return Blocks(directory)  # a forked process has no threads, so it gets another


class Blocks:
    """Reads blocks by their rows; any number of threads may."""

    def __init__(self, directory: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.directory = directory
        self.read_bytes = 0
        self.packs = PackReader(directory)
        self._limit, self._held = cache_bytes, 0
        self._cache: OrderedDict[bytes, Bytes] = OrderedDict()  # by hash, so always true
        self._lock = threading.Lock()
        self._scratch = _Scratch()

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that decode."""
        return ThreadPoolExecutor(threads(), "zoo")

    def fill(self, pieces: Pieces, rows: Mapping[int, Row], out: Bytes) -> None:
        """Writes the bytes of `pieces` into `out`, ``(their length,)``.

        Args:
            rows: of all blocks that the pieces lie in, and of their bases.

        Raises:
            ZooError: a pack that is missing, bytes that are damaged, or a model that was removed
                meanwhile.
        """
        ends = ends_of(pieces).tolist()
        jobs: dict[int, list[tuple[int, Bytes]]] = {}  # each block's parts together
        for (block, start, length), end in zip(pieces.tolist(), ends, strict=True):
            jobs.setdefault(block, []).append((start, out[end - length : end]))
        if len(jobs) == 1 or threads() == 1:
            for block, parts in jobs.items():
                self._fill(rows[block], parts, rows)
        else:
            list(self.pool.map(lambda job: self._fill(rows[job[0]], job[1], rows), jobs.items()))

    def raw(self, block: int, rows: Mapping[int, Row], *, keep: bool = True) -> Bytes:
        """Returns a block's raw bytes, not to be changed.

        Args:
            keep: for the next who asks.
        """
        key = rows[block].sha256
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        out = empty(rows[block].size)
        self.decode(rows[block], rows, out)
        out.flags.writeable = False
        if not keep:
            return out
        with self._lock:
            if key not in self._cache:
                self._held += out.nbytes
            self._cache[key] = out
            while self._held > self._limit:
                self._held -= self._cache.popitem(last=False)[1].nbytes
        return out

    def _fill(self, row: Row, parts: list[tuple[int, Bytes]], rows: Mapping[int, Row]) -> None:
        if row.shared or len(parts) > 1 or len(parts[0][1]) < row.size:
            raw = self.raw(row.id, rows)
            for start, out in parts:
                out[:] = raw[start : start + len(out)]
        else:
            self.decode(row, rows, parts[0][1])

    def decode(self, row: Row, rows: Mapping[int, Row], out: Bytes) -> None:
        """Writes a whole block's raw bytes into `out`, and compares them with their checksum.

        That is CRC-32, as zlib has it: at several GB/s it takes a small part of the time of
        decoding, where SHA-256 would take as long.

        Raises:
            ZooError: as `fill`.
        """
        self._decode(row, rows, out)
        if zlib.crc32(out.data) != row.crc32:
            raise damaged(row, self.directory, "its bytes are not those that were added")

    def _decode(self, row: Row, rows: Mapping[int, Row], out: Bytes) -> None:
        base = None if row.base is None else self.raw(row.base, rows)
        if row.codec == codec.PLAIN and row.stored == row.size and row.payload is None:
            self._stored(row, out)
            return
        payload: bytes | memoryview
        if row.payload is not None:
            payload = row.payload
        else:
            stored = self._scratch.of(row.stored)
            self._stored(row, stored)
            payload = stored.data
        try:
            codec.decode(row.codec, payload, row.item_bytes, out, base)
        except ValueError as error:
            raise damaged(row, self.directory, str(error)) from error

    def _stored(self, row: Row, out: Bytes) -> None:
        """Reads a stored block, from where it lies now, should it have been moved meanwhile."""
        try:
            done = self.packs.read_into(str(row.pack), row.place, out)
        except FileNotFoundError:
            row = self._moved(row)
            done = self.packs.read_into(str(row.pack), row.place, out)
        except OSError as error:
            raise damaged(row, self.directory, str(error)) from error
        if done < len(out):
            raise damaged(row, self.directory, "the file ends before it")
        self.read_bytes += done

    def _moved(self, row: Row) -> Row:
        with index.reading(self.directory) as connection:
            found = index.rows(connection, [row.id])
        if row.id not in found:
            raise ZooError(
                f"a model was removed from the zoo {self.directory} while it was read; add it "
                "again, then start again"
            )
        if found[row.id].pack == row.pack:
            raise ZooError(
                f"{self.directory / FOLDER / str(row.pack)} is missing; bring it back from a copy "
                "of the zoo"
            )
        return found[row.id]


def damaged(row: Row, directory: Path, why: str) -> ZooError:
    """Returns the sentence about a block whose bytes are not there."""
    place = directory / index.FILE if row.pack is None else directory / FOLDER / row.pack
    with index.reading(directory) as connection:
        models = index.models_of(connection, [row.id])
    return ZooError(
        f"{place} is damaged: block {row.sha256.hex()[:16]} at byte {row.place}, of the models "
        f"{models} ({why}); bring the file back from a copy of the zoo, or add the models' files "
        "again under other names, which stores the block anew"
    )
