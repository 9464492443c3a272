"""What a run directory holds, read back: the only input of tables, reports and model cards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = Mapping[str, Any]
FINISH = "run the command that started it again: it continues where it stopped"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`.

    Raises:
        ValueError: the file does not hold one JSON object; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {FINISH}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a JSON object")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a JSON-lines file; a line cut off at the end is left out.

    Raises:
        ValueError: a line other than an unfinished last one is not a JSON object; names it.
    """
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is cut off
        try:
            record = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object")
        records.append(record)
    return records


def write_lines(path: Path, rows: Iterable[Json]) -> None:
    """Writes a JSON-lines file."""
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


@dataclass(frozen=True)
class RunFiles:
    """A run directory in memory; files that an unfinished run lacks are None or empty.

    Args:
        seconds: evaluation id to seconds, from ``timing.jsonl``.
    """

    path: Path
    history: Sequence[Json]
    seconds: Mapping[int, float]
    summary: Json | None
    recipe: Json | None
    environment: Json
    certificate: Json | None = None

    @classmethod
    def read(cls, run: Path) -> RunFiles:
        """Returns the contents of `run`.

        Raises:
            FileNotFoundError: `run` is no run directory; says what it lacks.
            ValueError: a file in it is damaged; names the file and the line.
        """
        if not run.is_dir():
            raise FileNotFoundError(f"{run} is no directory; give the directory of a run")
        history = run / "history.jsonl"
        if not history.exists():
            raise FileNotFoundError(
                f"{run} has no history.jsonl, so no candidate was evaluated there; "
                "give the directory that `evomerge search` printed"
            )
        timing = run / "timing.jsonl"
        times = read_lines(timing) if timing.exists() else []
        return cls(
            path=run,
            history=read_lines(history),
            seconds={int(line["id"]): float(line["seconds"]) for line in times},
            summary=_optional(run / "summary.json"),
            recipe=_optional(run / "recipe.json"),
            environment=_optional(run / "environment.json") or {},
            certificate=_optional(run / "certificate.json"),
        )


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
