"""Local data files: JSON lines and plain text; every error names the file and the line."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


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
    """Returns the objects of a JSON-lines file, blank lines left out; ValueError for others."""
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


def read_text(path: Path) -> str:
    """Returns the text of a file that is not empty; raises ValueError otherwise."""
    try:
        text = path.read_bytes().decode()
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


def take_items(
    values: Sequence[T], take: str | None, path: Path, most: int | None = None
) -> tuple[list[T], str]:
    """Returns the values that `take` names, at most `most` of them, and the data's identity."""
    chosen = take_range(take, len(values), str(path))[:most]
    return [values[i] for i in chosen], f"{path.resolve()}[{chosen.start}:{chosen.stop}]"


def digest(*parts: object) -> str:
    """Returns a short digest of JSON-like values; equal for equal content on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
