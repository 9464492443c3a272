"""Local data files: JSON lines, CSV, Parquet, plain text; errors name the file and the line."""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evaluators.tasks.splits import ItemDraw, ordered

T = TypeVar("T")

_TABLES = {".csv": "CSV", ".parquet": "Parquet"}


@dataclass(frozen=True)
class Line:
    """One JSON object of a file, and where it stands."""

    path: Path
    number: int
    fields: Mapping[str, Any]

    def field(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Returns a field; raises ValueError if it is missing or of another type."""
        if name not in self.fields:
            raise ValueError(
                f"{self}: no field {name!r}; it has {', '.join(sorted(self.fields)) or 'none'}"
            )
        value = self.fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(known.__name__ for known in kinds)
            raise ValueError(f"{self}: field {name!r} must be {wanted}, got {value!r:.80}")
        return value

    def unfolded(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Returns a field as `field` does; a text that is a JSON list or object (CSV) as that."""
        value = self.field(name, kind)
        try:
            held = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError:
            return value
        return held if isinstance(held, list | dict) else value

    def text(self, name: str) -> str:
        """Returns a text field that holds more than white space; raises ValueError otherwise."""
        value: str = self.field(name, str)
        if not value.strip():
            raise ValueError(f"{self}: field {name!r} is empty; remove the line")
        return value

    def __str__(self) -> str:
        return f"{self.path} line {self.number}"


def data_path(data: str, split: str | None) -> Path:
    """Returns the file that `data` names, ``{split}`` in it replaced by `split`.

    Raises ValueError if there is no such file, or only one of split and its placeholder.
    """
    if (split is not None) != ("{split}" in data):
        raise ValueError(
            f"data {data!r} and split {split!r}: write {{split}} into the file's name where a "
            "split is given, and nowhere else"
        )
    path = Path(data.replace("{split}", split or "")).expanduser()
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist: correct its path")
    return path


def read_lines(path: Path) -> list[Line]:
    """Returns the objects of a JSON-lines, CSV or Parquet file; ValueError for others.

    Blank lines are left out, the types of CSV's columns inferred.
    """
    if path.suffix in _TABLES:
        rows = [Line(path, i, fields) for i, fields in enumerate(_rows(path), start=1)]
        if not rows:
            raise ValueError(f"data file {path} is empty: name a file that holds items")
        return rows
    lines: list[Line] = []
    for number, raw in enumerate(read_text(path).split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            fields = json.loads(raw)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{path} line {number} is no JSON object: {raw:.80}")
        lines.append(Line(path, number, fields))
    return lines


def columns(path: Path) -> list[str]:
    """Returns the names of a table's columns, of JSON lines those of the first; reads no more."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return list(pyarrow.parquet.read_schema(path).names)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file: {error}") from error
    with path.open(encoding="utf-8-sig") as file:
        try:
            if path.suffix == ".csv":
                first: Any = next(csv.reader(file), [])
            else:
                first = json.loads(next((line for line in file if line.strip()), "{}"))
        except ValueError as error:
            raise ValueError(f"{path} does not begin as such a file does: {error}") from error
    if path.suffix != ".csv" and not isinstance(first, dict):
        raise ValueError(f"{path} holds no JSON object in its first line: write one an item")
    if not first:
        raise ValueError(f"{path} names no columns in its first line: write items into it")
    return list(first)


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(path, parse_options=lines)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as {_TABLES[path.suffix]}: {error}") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read_text(path: Path) -> str:
    """Returns the text of a file that is not empty; raises ValueError otherwise."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data file {path} is not UTF-8 text ({error}): convert it") from error
    if not text.strip():
        raise ValueError(f"data file {path} is empty: name a file that holds items")
    return text


def take_range(take: str | None, count: int, what: str) -> range:
    """Returns the items that ``"start:stop"`` names out of `count`; None: all of them.

    Raises:
        ValueError: not of that form, nothing left, or an end beyond the last item.
    """
    if take is None:
        return range(count)
    match = re.fullmatch(r"(\d*):(\d*)", take)
    if match is None:
        raise ValueError(f"{what}: take must read start:stop, for example 0:200, got {take!r}")
    start, stop = int(match[1] or 0), int(match[2] or count)
    if not 0 <= start < stop <= count:
        raise ValueError(f"{what}: take {take} does not fit its {count} items")
    return range(start, stop)


class Taken(NamedTuple):
    """What one panel takes of the items of a file."""

    values: list[Any]
    source: str  # identity of the data and of what is taken; see `ItemSet`
    found: int  # items there were to take from; distinct ones, where they are drawn


def take_items(
    values: Sequence[T],
    take: str | ItemDraw | None,
    path: Path,
    most: int | None = None,
    *,
    key: Callable[[T], tuple[str, object]],
) -> Taken:
    """Returns the values that `take` names or draws, at most `most` of them.

    Args:
        key: value to the digest of its item, and to its label, None where it has none.
    """
    data = str(path.resolve())
    if isinstance(take, ItemDraw):
        keys = [key(value) for value in values]
        order = ordered([one for one, _ in keys], [label for _, label in keys], take.seed)
        part = order[take.part(len(order), data)][:most]
        return Taken([values[i] for i in part], f"{data}[{take.panel}]", len(order))
    chosen = take_range(take, len(values), str(path))[:most]
    named = f"{data}[{chosen.start}:{chosen.stop}]"
    return Taken([values[i] for i in chosen], named, len(values))


def digest(*parts: object) -> str:
    """Returns a short digest of JSON-like values; equal for equal content on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
