"""Models of a zoo by name; what no model needs is freed; what is damaged is named."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merging.zoo import index, layout
from merging.zoo.adding import in_order
from merging.zoo.blocks import Blocks, blocks_of, damaged
from merging.zoo.errors import ZooError
from merging.zoo.index import Row
from merging.zoo.packs import FOLDER, MAGIC, PackReader, PackWriter

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,199}")

OWN_BYTES = """
SELECT model, SUM(stored) FROM blocks JOIN (
    SELECT block, MIN(model) AS model FROM uses GROUP BY block HAVING COUNT(*) = 1
) ON block = id GROUP BY model
"""
"""Model's number -> stored bytes that only it needs."""

_DEAD_SHARE, _DEAD_BYTES = 0.01, 2**20
"""Share of a pack, or bytes, that nobody needs, above which the rest is written anew."""


class ModelEntry(NamedTuple):
    """A model as the index has it."""

    id: int
    name: str
    kind: str
    sha256: str


def find(directory: Path, name: str) -> ModelEntry:
    """Returns a model by its name; raises ZooError where there is none."""
    with index.reading(directory) as connection:
        query = "SELECT id, name, kind, sha256 FROM models WHERE name = ?"
        row = connection.execute(query, (name,)).fetchone()
        known = connection.execute("SELECT name FROM models ORDER BY name LIMIT 5").fetchall()
    if row is None:
        some = ", ".join(each for (each,) in known) or "nothing"
        raise ZooError(
            f"no model {name!r} is in the zoo {directory}, which has {some}; name one of it"
        )
    return ModelEntry(*row)


def check_name(directory: Path, name: str) -> None:
    """Raises ZooError where `name` is taken, or cannot name a directory."""
    if not name:
        raise ZooError("a model of a zoo needs a name; give one")
    if not _NAME.fullmatch(name):
        raise ZooError(
            f"{name!r} cannot name a model; use up to 200 letters, digits, and "
            ". _ - + = @ after the first"
        )
    with index.reading(directory) as connection:
        if connection.execute("SELECT 1 FROM models WHERE name = ?", (name,)).fetchone():
            raise ZooError(
                f"{name} is in the zoo {directory} already; choose another name, or remove it"
            )


def remove(directory: Path, model: int) -> None:
    """Forgets a model; its blocks stay until `collect`."""
    with index.writing(directory) as connection:
        connection.execute("DELETE FROM models WHERE id = ?", (model,))


def remove_orphans(directory: Path) -> None:
    """Removes packs that a writer left who was killed before the index named them."""
    with index.reading(directory) as connection:
        known = {name for (name,) in connection.execute("SELECT name FROM packs")}
    for path in (directory / FOLDER).glob("*.pack"):
        if path.name not in known:
            path.unlink()


def collect(directory: Path) -> int:
    """Removes blocks that no model needs from packs and index; returns the bytes freed on disk."""
    before = (directory / index.FILE).stat().st_size
    with index.reading(directory) as connection:
        sparse = _sparse(directory, connection)
        last = connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = 'packs'"
        ).fetchone()
        live = [row for row in index.all_rows(connection) if row.pack in sparse]
        needed = {block for (block,) in connection.execute("SELECT DISTINCT block FROM uses")}
    writer = PackWriter(directory, (last[0] if last else 0) + 1)
    try:
        moved = _copied(directory, writer, [row for row in live if row.id in needed])
        writer.close()
        with index.writing(directory) as connection:
            _move(connection, writer.sizes, moved)
            connection.execute("DELETE FROM blocks WHERE id NOT IN (SELECT block FROM uses)")
            connection.executemany(
                "DELETE FROM packs WHERE name = ?", [(name,) for name in sparse]
            )
        anew = writer.keep()
    finally:
        writer.discard()
    for name in sparse:
        (directory / FOLDER / name).unlink(missing_ok=True)
    blocks_of(directory).packs.release(sparse)
    index.shrink(directory)
    return sum(sparse.values()) - anew + before - (directory / index.FILE).stat().st_size


def _sparse(directory: Path, connection: sqlite3.Connection) -> dict[str, int]:
    """Returns the packs, with their bytes, of which too much is needed by nobody."""
    query = """
        SELECT name, bytes, (SELECT COALESCE(SUM(stored), 0) FROM blocks
            WHERE pack = packs.id AND id IN (SELECT block FROM uses)) FROM packs"""
    return {
        name: size
        for name, size, live in connection.execute(query)
        if not live or _worth(directory / FOLDER / name, size - len(MAGIC) - live)
    }


def _worth(pack: Path, dead: int) -> bool:
    """Whether the rest of a pack is to be written anew; one that is missing may come back."""
    return pack.is_file() and dead > min(_DEAD_BYTES, _DEAD_SHARE * pack.stat().st_size)


def _copied(directory: Path, writer: PackWriter, rows: list[Row]) -> list[tuple[str, int, int]]:
    """Writes stored blocks anew, as they are; returns pack, place and number of each."""
    packs, moved = PackReader(directory), []
    for row in rows:
        payload = np.empty(row.stored, np.uint8)
        if packs.read_into(str(row.pack), row.place, payload) < row.stored:
            raise damaged(row, directory, "the file ends before it")
        moved.append((*writer.append(payload.data), row.id))
    return moved


def _move(
    connection: sqlite3.Connection, sizes: dict[str, int], moved: list[tuple[str, int, int]]
) -> None:
    for name, size in sizes.items():
        connection.execute("INSERT INTO packs(name, bytes) VALUES(?, ?)", (name, size))
    connection.executemany(
        "UPDATE blocks SET pack = (SELECT id FROM packs WHERE name = ?), place = ? WHERE id = ?",
        moved,
    )


def check(directory: Path, on_bytes: Callable[[int], None]) -> list[str]:
    """Reads every block; returns a sentence for each damaged pack or file, empty: all is well."""
    with index.reading(directory) as connection:
        problems = [
            f"{directory / index.FILE} is damaged ({text}); bring it back from a copy of the zoo"
            for (text,) in connection.execute("PRAGMA quick_check")
            if text != "ok"
        ]
        rows = {row.id: row for row in index.all_rows(connection)}
        problems += _of_files(connection, directory, rows)
    blocks = blocks_of(directory)
    bad: dict[int, str] = {}
    for own in (False, True):  # bases first: of what is a difference to a damaged one, only that
        todo = [r for r in rows.values() if (r.base is not None) is own and r.base not in bad]
        for row, why in in_order(blocks.pool, lambda row: (row, _why(row, rows, blocks)), todo):
            on_bytes(row.size)
            if why is not None:
                bad[row.id] = why
    return problems + list(_of_packs(directory, rows, bad))


def _why(row: Row, rows: dict[int, Row], blocks: Blocks) -> str | None:
    """Returns what is wrong with a block; None: nothing."""
    out = np.empty(row.size, np.uint8)
    try:
        blocks.decode(row, rows, out)
    except ZooError as error:
        return str(error)
    return (
        None
        if sha256(out.data).digest() == row.sha256
        else "its bytes are not those that were added"
    )


def _of_packs(directory: Path, rows: dict[int, Row], bad: dict[int, str]) -> Iterator[str]:
    packs: dict[str | None, list[int]] = {}
    for block in sorted(bad):
        packs.setdefault(rows[block].pack, []).append(block)
    for pack, blocks in packs.items():
        with index.reading(directory) as connection:
            models = index.models_of(connection, blocks)
        place = index.FILE if pack is None else f"{FOLDER}/{pack}"
        named = ", ".join(
            f"{rows[b].sha256.hex()[:16]} at byte {rows[b].place}" for b in blocks[:3]
        )
        more = f" and {len(blocks) - 3} more" if len(blocks) > 3 else ""
        there = "is damaged" if (directory / place).is_file() else "is missing"
        yield (
            f"{directory / place} {there}: block {named}{more}, of the models "
            f"{models}; bring the file back from a copy of the zoo, or add the models' files "
            "again under other names, which stores the blocks anew"
        )


def _of_files(
    connection: sqlite3.Connection, directory: Path, rows: dict[int, Row]
) -> Iterator[str]:
    """Yields a sentence for each file whose pieces are not all of its bytes."""
    query = (
        "SELECT models.name, files.name, files.bytes, pieces FROM files JOIN models ON model = id"
    )
    for model, file, size, raw in connection.execute(query).fetchall():
        pieces = np.frombuffer(raw, layout.PIECES)
        inside = all(b in rows and s + n <= rows[b].size for b, s, n in pieces.tolist())
        if not inside or int(pieces["length"].sum(dtype=np.int64)) != size:
            yield (
                f"{directory / index.FILE} is damaged: {file} of the model {model} has blocks "
                "that are missing; bring it back from a copy of the zoo"
            )
