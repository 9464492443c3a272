"""New blocks and models: streamed into packs that nothing names until all is on the disk."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from merging.zoo import codec, index, layout
from merging.zoo.blocks import Bytes, blocks_of, empty, threads
from merging.zoo.errors import ZooError
from merging.zoo.layout import Chunk, Pieces
from merging.zoo.packs import PackWriter
from merging.zoo.relatives import Relative

logger = logging.getLogger(__name__)

_IN_INDEX = 2**14
"""Stored bytes up to which a block lies in the index: recipes and settings need no pack."""

_AHEAD = 2
"""Blocks per thread that are on their way at a time."""

In = TypeVar("In")
Out = TypeVar("Out")


class _Prepared(NamedTuple):
    """A block that was read and hashed.

    `block`: it is stored already; where there is a payload, too, what is stored is damaged.
    """

    sha256: bytes
    size: int
    item_bytes: int
    block: int | None
    crc32: int = 0
    codec: int = 0
    payload: bytes = b""
    base: int | None = None


@dataclass(frozen=True, eq=False)
class NewFile:
    """A file of a model that is being added; fields as the index has them.

    `finite`: whether its tensors hold no NaN and no infinity.
    """

    name: str
    sha256: str
    size: int
    header: int
    pieces: Pieces
    finite: bool = True


@dataclass(frozen=True)
class NewModel:
    """A model that is being added; fields as the index has them."""

    name: str
    kind: str
    sha256: str
    size: int
    base: str | None = None
    signature: bytes | None = None


class Addition:
    """New blocks of a zoo; its caller holds the writers' lock.

    Attributes:
        stored: bytes that were written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.stored = 0
        self._new: dict[bytes, int] = {}  # new ones, and those found sound
        self._rows: list[index.Row] = []
        self._mended: list[index.Row] = []
        self._lock = threading.Lock()
        self.blocks = blocks_of(directory)
        with index.reading(directory) as connection:
            last = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
        self._next: int = last.get("blocks", 0) + 1
        self._packs = PackWriter(directory, last.get("packs", 0) + 1)
        self._connection = sqlite3.connect(directory / index.FILE, check_same_thread=False)

    def __enter__(self) -> Addition:
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()
        self._packs.discard()

    def file(
        self,
        path: Path,
        name: str,
        chunks: Iterable[Chunk],
        header: bytes,
        relative: Relative | None,
        on_bytes: Callable[[int], None],
    ) -> NewFile:
        """Stores a file of the user's by its chunks.

        Raises:
            ZooError: it cannot be read, or changes meanwhile.
            OSError: the zoo cannot be written.
        """
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _unreadable(path, error) from error
        with file:
            before, handle = os.fstat(file.fileno()), file.fileno()
            digest = self.blocks.pool.submit(_digest, os.dup(handle))

            def prepare(chunk: Chunk) -> tuple[Chunk, _Prepared, bool]:
                base = None if relative is None else relative.base(chunk)
                raw = read_chunk(path, handle, chunk)
                prepared = self._prepare(raw, layout.item_bytes(chunk.dtype), base)
                return chunk, prepared, layout.all_finite(raw, chunk.dtype)

            placed, finite = [], True
            for chunk, prepared, sound in in_order(self.blocks.pool, prepare, chunks):
                placed.append((chunk, self._place(prepared)))
                finite &= sound
                on_bytes(chunk.size)
            pieces = layout.assemble(placed)
            sha256 = digest.result()
            after, size = os.fstat(handle), int(pieces["length"].sum(dtype=np.int64))
            same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            # its header was read before it was opened: another file may have taken its place
            if not same or size != after.st_size or os.pread(handle, len(header), 0) != header:
                raise ZooError(f"{path} was changed while it was read; add it again")
            return NewFile(name, sha256, size, len(header), pieces, finite)

    def content(self, raw: bytes | memoryview | Bytes, item_bytes: int = 1) -> Pieces:
        """Stores bytes; returns where they lie."""
        data = np.frombuffer(raw, np.uint8)
        parts = [data[at : at + layout.BLOCK] for at in range(0, len(data), layout.BLOCK)]
        found = [
            (self._place(self._prepare(part, item_bytes, None)), 0, len(part)) for part in parts
        ]
        return np.array(found, layout.PIECES)

    def small_file(self, name: str, raw: bytes) -> NewFile:
        """Stores a file of which all bytes are at hand."""
        return NewFile(name, hashlib.sha256(raw).hexdigest(), len(raw), 0, self.content(raw))

    def rows(self, blocks: Iterable[int]) -> dict[int, index.Row]:
        """Returns the rows of blocks, also new ones, and of their bases."""
        with index.reading(self._directory) as connection:
            found = index.rows(connection, blocks)
        wanted = set(blocks)
        own = (row for row in (*self._rows, *self._mended) if row.id in wanted)
        return found | {row.id: row for row in own}

    def holds_differences(self, files: Iterable[NewFile]) -> bool:
        """Whether a block of the files is stored as difference to one of a relative."""
        used = np.concatenate([np.zeros(0, np.int64), *(f.pieces["block"] for f in files)])
        return any(row.base is not None for row in self.rows(np.unique(used).tolist()).values())

    def commit(self, model: NewModel, files: Iterable[NewFile]) -> None:
        """Makes all of it part of the zoo, in one step; raises ZooError."""
        files = list(files)
        self._packs.close()
        with index.writing(self._directory) as connection:
            packs = {}
            for pack, size in self._packs.sizes.items():
                done = connection.execute(
                    "INSERT INTO packs(name, bytes) VALUES(?, ?)", (pack, size)
                )
                packs[pack] = done.lastrowid
            connection.executemany(
                "INSERT INTO blocks(id, sha256, bytes, item_bytes, codec, base, pack, place, "
                "stored, payload, crc32) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(*row[:6], packs.get(row.pack or ""), *row[7:11]) for row in self._rows],
            )
            connection.executemany(
                "UPDATE blocks SET codec = ?, base = ?, pack = ?, place = ?, stored = ?, "
                "payload = ?, crc32 = ? WHERE id = ?",
                [
                    (*row[4:6], packs.get(row.pack or ""), *row[7:11], row.id)
                    for row in self._mended
                ],
            )
            number = connection.execute(
                "INSERT INTO models(name, kind, sha256, bytes, base, signature) "
                "VALUES(?, ?, ?, ?, (SELECT id FROM models WHERE name = ?), ?)",
                (model.name, model.kind, model.sha256, model.size, model.base, model.signature),
            ).lastrowid
            connection.executemany(
                "INSERT INTO files VALUES(?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, f.name, f.sha256, f.size, f.header, f.pieces.tobytes(), f.finite)
                    for f in files
                ],
            )
            used = np.unique(
                np.concatenate([np.zeros(0, np.int64), *(f.pieces["block"] for f in files)])
            )
            connection.executemany(
                "INSERT INTO uses VALUES(?, ?)", [(number, b) for b in used.tolist()]
            )
            connection.execute(
                "INSERT OR IGNORE INTO uses SELECT model, base FROM uses "
                "JOIN blocks ON id = block WHERE model = ? AND base IS NOT NULL",
                (number,),
            )
        self._packs.keep()
        if self._mended:
            logger.warning(
                "%s: %d damaged blocks were stored anew", self._directory, len(self._mended)
            )

    def _prepare(self, raw: Bytes, item_bytes: int, base: index.Row | None) -> _Prepared:
        sha256 = hashlib.sha256(raw.data).digest()
        found, sound = self._find(sha256)
        if sound:
            return _Prepared(sha256, len(raw), item_bytes, found)
        # What is damaged may be what others are differences to, so it is stored alone.
        near = self._near(base) if base is not None and found is None else None
        number, payload = codec.encode(raw, item_bytes, near)
        used = base.id if base is not None and number == codec.DIFFERENCE else None
        crc32 = zlib.crc32(raw.data)
        return _Prepared(sha256, len(raw), item_bytes, found, crc32, number, payload, used)

    def _near(self, base: index.Row) -> Bytes | None:
        """Returns the block of a relative; None: it is damaged, and nothing becomes one to it."""
        try:
            return self.blocks.raw(base.id, {base.id: base}, keep=False)
        except ZooError:
            return None

    def _find(self, sha256: bytes) -> tuple[int | None, bool]:
        """Returns the number of a block that is stored, and whether it can be read."""
        with self._lock:
            if sha256 in self._new:
                return self._new[sha256], True
            query = "SELECT id FROM blocks WHERE sha256 = ?"
            row = self._connection.execute(query, (sha256,)).fetchone()
            if row is None:
                return None, False
            rows = index.rows(self._connection, row)
        block: int = row[0]
        try:
            self.blocks.decode(rows[block], rows, empty(rows[block].size))
        except ZooError:
            return block, False
        with self._lock:
            self._new[sha256] = block
        return block, True

    def _place(self, new: _Prepared) -> int:
        """Returns the number of a block, which it stores if no other one has come before."""
        if new.block is not None and not new.payload:
            return new.block
        if new.sha256 in self._new:
            return self._new[new.sha256]
        pack, place, payload = None, 0, None
        if len(new.payload) <= _IN_INDEX:
            payload = bytes(new.payload)
        else:
            pack, place = self._packs.append(new.payload)
        rows, block = self._mended, new.block
        if block is None:
            rows, block = self._rows, self._next
            self._next += 1
        stored = len(new.payload)
        self.stored += stored
        described = block, new.sha256, new.size, new.item_bytes, new.codec, new.base
        rows.append(index.Row(*described, pack, place, stored, payload, new.crc32, False))
        with self._lock:
            self._new[new.sha256] = block
        return block


def in_order(pool: Executor, work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Yields ``work(item)`` in the order of the items; a few at a time are on their way."""
    ahead: deque[Future[Out]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > _AHEAD * threads():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()
        for future in ahead:
            if not future.cancelled():
                future.exception()  # waits: it may read what its caller is about to close


def read_chunk(path: Path, handle: int, chunk: Chunk) -> Bytes:
    """Returns a chunk's bytes from an open file; raises ZooError."""
    out, done = np.empty(chunk.size, np.uint8), 0
    for begin, end in chunk.ranges:
        try:
            got = os.preadv(handle, [out[done : done + end - begin].data], begin)
        except OSError as error:
            raise _unreadable(path, error) from error
        if got != end - begin:
            raise ZooError(f"{path} was changed while it was read; add it again")
        done += got
    return out


def _digest(handle: int) -> str:
    """Returns the SHA-256 of an open file, and closes it."""
    digest, memory, at = hashlib.sha256(), bytearray(2**20), 0
    with FileIO(handle) as file:
        while size := os.preadv(file.fileno(), [memory], at):
            digest.update(memoryview(memory)[:size])
            at += size
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> ZooError:
    return ZooError(f"{path} cannot be read ({error.strerror}); mend that, then add it again")
