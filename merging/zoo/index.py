"""The index of a zoo: an SQLite file that says what is stored, where, and who needs it.

It keeps a rollback journal, not a write-ahead log: the whole truth is one file, that may be
moved, copied, lie on a read-only disk or on a network's. Connections live as long as one question,
so that readers never keep a writer waiting.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from merging.zoo.errors import ZooError, explained

FILE = "index.sqlite"

_WAIT_S = 60.0
"""How long another's commit is waited for; it takes milliseconds."""

_SCHEMA = """
CREATE TABLE packs(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    bytes INTEGER NOT NULL);
CREATE TABLE blocks(  -- numbers are never used again, so that what readers hold stays true
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256 BLOB NOT NULL UNIQUE,
    bytes INTEGER NOT NULL,
    item_bytes INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    base INTEGER REFERENCES blocks,
    pack INTEGER REFERENCES packs,  -- null: small enough to lie here
    place INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    payload BLOB,
    crc32 INTEGER NOT NULL);  -- of the raw bytes: compared whenever they are read
CREATE INDEX blocks_base ON blocks(base) WHERE base IS NOT NULL;
CREATE INDEX blocks_pack ON blocks(pack);
CREATE TABLE models(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    base INTEGER REFERENCES models ON DELETE SET NULL,
    signature BLOB);
CREATE TABLE files(
    model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    header INTEGER NOT NULL,  -- bytes before the tensors; 0: it holds none
    pieces BLOB NOT NULL,
    finite INTEGER NOT NULL,  -- whether no value of its tensors is NaN or infinite
    PRIMARY KEY(model, name)) WITHOUT ROWID;
CREATE TABLE uses(  -- blocks of a model's pieces, and those that they are differences to
    model INTEGER NOT NULL REFERENCES models ON DELETE CASCADE,
    block INTEGER NOT NULL REFERENCES blocks,
    PRIMARY KEY(model, block)) WITHOUT ROWID;
CREATE INDEX uses_block ON uses(block);
"""


class Row(NamedTuple):
    """One block: its hash and how many raw bytes it has, and where and how they are stored.

    `pack`: path below the zoo; None: `payload` lies in the index. `crc32`: of the raw bytes, as
    zlib's. `shared`: others are stored as differences to it.
    """

    id: int
    sha256: bytes
    size: int
    item_bytes: int
    codec: int
    base: int | None
    pack: str | None
    place: int
    stored: int
    payload: bytes | None
    crc32: int
    shared: bool


_ROW = """
SELECT b.id, b.sha256, b.bytes, b.item_bytes, b.codec, b.base, p.name, b.place, b.stored,
    b.payload, b.crc32, EXISTS(SELECT 1 FROM blocks d WHERE d.base = b.id)
FROM blocks b LEFT JOIN packs p ON p.id = b.pack
"""


def create(directory: Path) -> None:
    """Writes an empty index, in one piece."""
    draft = directory / f".{FILE}.{os.getpid()}.tmp"
    connection = sqlite3.connect(draft)
    try:
        connection.executescript(_SCHEMA)
        connection.close()
        os.replace(draft, directory / FILE)
    finally:
        connection.close()
        draft.unlink(missing_ok=True)


@contextmanager
def reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """Yields a connection that sees one state; raises ZooError where there is no index."""
    with explained(directory), _connected(directory) as connection:
        connection.execute("BEGIN")
        yield connection


@contextmanager
def writing(directory: Path) -> Iterator[sqlite3.Connection]:
    """Yields a connection whose changes are committed together at the end, or not at all."""
    with explained(directory), _connected(directory) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")  # closed before that, the connection takes all back


@contextmanager
def _connected(directory: Path) -> Iterator[sqlite3.Connection]:
    file = directory / FILE
    if not file.is_file():
        raise ZooError(f"{file} is missing; bring it back from a copy of the zoo")
    # A killed writer's journal is rolled back by the next who may write.
    mode = "rw" if os.access(directory, os.W_OK) else "ro"
    connection = sqlite3.connect(
        f"{file.resolve().as_uri()}?mode={mode}", uri=True, timeout=_WAIT_S, isolation_level=None
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = EXTRA")
        yield connection
    finally:
        connection.close()


def shrink(directory: Path) -> None:
    """Gives back the pages that nothing fills any more; raises ZooError."""
    with explained(directory), _connected(directory) as connection:
        if connection.execute("PRAGMA freelist_count").fetchone()[0]:
            connection.execute("VACUUM")


def rows(connection: sqlite3.Connection, blocks: Iterable[int]) -> dict[int, Row]:
    """Returns the rows of blocks and of the blocks that they are differences to."""
    found = _rows(connection, set(blocks))
    bases = {row.base for row in found.values() if row.base is not None}
    return found | _rows(connection, bases - found.keys())


def _rows(connection: sqlite3.Connection, blocks: set[int]) -> dict[int, Row]:
    wanted, found = sorted(blocks), {}
    for i in range(0, len(wanted), 500):
        part = wanted[i : i + 500]
        marks = ",".join("?" * len(part))
        for values in connection.execute(f"{_ROW} WHERE b.id IN ({marks})", part):
            found[values[0]] = Row(*values)
    return found


def models_of(connection: sqlite3.Connection, blocks: Iterable[int]) -> str:
    """Returns the names of all models that need one of the blocks, to be read by people."""
    query = "SELECT name FROM models JOIN uses ON model = id WHERE block = ?"
    found = {name for block in blocks for (name,) in connection.execute(query, (block,))}
    return ", ".join(sorted(found)) or "that were removed"


def all_rows(connection: sqlite3.Connection) -> Iterator[Row]:
    """Yields every block, pack by pack in the order of their places."""
    for values in connection.execute(f"{_ROW} ORDER BY b.pack, b.place, b.id"):
        yield Row(*values)
