"""Every evaluation of a run on disk, append-only: the only truth, from which a run resumes."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from merging.arrays import Vector
from search.loop import jsonl
from search.loop.jsonl import DamagedFileError


class HistoryError(RuntimeError):
    """What an earlier session wrote down does not belong to this search; says what to do."""


@dataclass(frozen=True, eq=False)
class Record:
    """One evaluated candidate.

    Args:
        scores: by ``task/metric``, in the metric's own units; NaN where not finite; empty where
            the evaluation failed before it gave scores.
        fitness: ``(objectives,)``, higher is better; None: failed.
        failure: why it failed; None: it did not.
        same_as: id of the earlier candidate with the same genome whose scores these are; None:
            this one was evaluated itself.
        cases: ``(cases,)`` per-item scores, where the objective gives them.
        seconds: time the evaluation took; 0 for a repeat.
        items: number of the generation on whose own items it was scored; None: on all items.
        asked: number of items on which the fitness is an estimate; None: it is none.
        after: how many candidates had been asked when this one was told alone; None: it was told
            with its generation.
    """

    id: int
    genome: Any
    scores: Mapping[str, float]
    fitness: Vector | None
    failure: str | None = None
    same_as: int | None = None
    cases: Vector | None = None
    seconds: float = 0.0
    items: int | None = None
    asked: int | None = None
    after: int | None = None


class History:
    """The records of one run, in ``history.jsonl``, ``cases.jsonl`` and ``timing.jsonl``.

    The first two hold no time: equal runs give equal bytes. A record's line in ``history.jsonl``
    is written last, so that a killed run leaves a record either whole or not at all.

    Args:
        directory: of the run; must exist. Files in it are read, and repaired where the last line
            was cut off.
        timed: whether there is a ``timing.jsonl``: times tell of private items.

    Raises:
        DamagedFileError: a file is corrupt, or the three do not belong together.
    """

    def __init__(self, directory: Path, *, timed: bool = True) -> None:
        self._lines = directory / "history.jsonl"
        self._cases = directory / "cases.jsonl"
        self._timing = directory / "timing.jsonl" if timed else None
        self._records = _read(self._lines, self._cases, self._timing)

    @property
    def records(self) -> Mapping[int, Record]:
        """All records by id."""
        return MappingProxyType(self._records)

    def append(self, record: Record) -> None:
        """Writes a record; when this returns it is on disk.

        Raises:
            ValueError: there is a record with this id.
            OSError: the disk is full or read-only; the record is then not in the history.
        """
        if record.id in self._records:
            raise ValueError(f"{self._lines} already holds candidate {record.id}")
        if record.same_as is None:
            if record.cases is not None:
                jsonl.append(self._cases, {"id": record.id, "cases": record.cases.tolist()})
            if self._timing is not None:
                seconds = round(record.seconds, 6)
                jsonl.append(
                    self._timing, {"id": record.id, "seconds": seconds, "at": time.time()}
                )
        jsonl.append(self._lines, _line(record))
        self._records[record.id] = record


def _line(record: Record) -> dict[str, Any]:
    line = {
        "id": record.id,
        "genome": record.genome,
        "scores": {
            name: value if math.isfinite(value) else None for name, value in record.scores.items()
        },
        "fitness": None if record.fitness is None else record.fitness.tolist(),
        "failure": record.failure,
        "same_as": record.same_as,
    }
    optional = {"items": record.items, "asked": record.asked, "after": record.after}
    return {**line, **{key: value for key, value in optional.items() if value is not None}}


def _read(lines: Path, cases: Path, timing: Path | None) -> dict[int, Record]:
    history = _by_id(lines, jsonl.read(lines), _FIELDS)
    seconds = {} if timing is None else _belonging(timing, history, "seconds")
    per_item = _belonging(cases, history, "cases")
    evaluated = [i for i, line in history.items() if line["same_as"] is None]
    if timing is not None:
        _check_present(timing, evaluated, seconds)
    if per_item:
        _check_present(
            cases, [i for i in evaluated if history[i]["fitness"] is not None], per_item
        )
    records = {}
    for i, line in history.items():
        original = i if line["same_as"] is None else line["same_as"]
        values = per_item[original]["cases"] if original in per_item else None
        records[i] = Record(
            id=i,
            genome=line["genome"],
            scores={k: math.nan if v is None else v for k, v in line["scores"].items()},
            fitness=None if line["fitness"] is None else np.array(line["fitness"], np.float64),
            failure=line["failure"],
            same_as=line["same_as"],
            cases=None if values is None else np.array(values, np.float64),
            seconds=seconds[i]["seconds"] if i in seconds else 0.0,
            items=line.get("items"),
            asked=line.get("asked"),
            after=line.get("after"),
        )
    return records


_FIELDS = ("genome", "scores", "fitness", "failure", "same_as")


def _by_id(
    path: Path, values: list[dict[str, Any]], fields: Sequence[str]
) -> dict[int, dict[str, Any]]:
    by_id: dict[int, dict[str, Any]] = {}
    for number, value in enumerate(values, start=1):
        lacking = [field for field in fields if field not in value]
        if lacking:
            raise DamagedFileError(f"{path}, line {number} lacks {lacking}; restore the file")
        if value["id"] in by_id:
            raise DamagedFileError(
                f"{path}, line {number} repeats id {value['id']}; restore the file"
            )
        by_id[value["id"]] = value
    return by_id


def _belonging(path: Path, history: Mapping[int, Any], field: str) -> dict[int, dict[str, Any]]:
    """Reads a side file and cuts off what its writer did not live to enter in the history."""
    values = jsonl.read(path)
    kept = values
    while kept and kept[-1]["id"] not in history:
        kept = kept[:-1]
    if len(kept) < len(values):
        jsonl.keep_first(path, len(kept))
    return _by_id(path, kept, (field,))


def _check_present(path: Path, ids: list[int], by_id: Mapping[int, Any]) -> None:
    missing = [i for i in ids if i not in by_id]
    if missing:
        raise DamagedFileError(
            f"{path} lacks ids {missing[:5]} that history.jsonl holds; restore the file, or start "
            "in an empty directory"
        )
