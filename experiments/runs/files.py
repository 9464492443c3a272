"""What a run directory holds, read back: the only input of tables, reports and model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Json: TypeAlias = Mapping[str, Any]
Split: TypeAlias = Literal["search", "selection", "report"]
IN_HULL = "best in hull"  # name of the companion search's winner
FINISH = "run the command that started it again: it continues where it stopped"


@dataclass(frozen=True)
class TaskColumn:
    """One task: its display name, its main metric ``task/metric`` and that metric's direction."""

    name: str
    metric: str
    direction: Literal["maximize", "minimize"]


@dataclass(frozen=True)
class SplitScores:
    """What one model scored on one split.

    Args:
        fitness: ``(objectives,)``, higher is better; None where the model could not be scored.
        scores: ``task/metric`` to value, in the metric's own units.
        failure: why there is no fitness; None where there is one.
        chances: what chance gives, for the scores that state it.
        intervals: ends of the 95 % interval, for the scores that state it.
    """

    fitness: tuple[float, ...] | None
    scores: Mapping[str, float]
    failure: str | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelRow:
    """A row of the result: the base, an expert, a static merge or what a search has found."""

    name: str
    kind: Literal["base", "expert", "static", "in_hull", "evolved"]
    search: SplitScores | None
    selection: SplitScores | None
    report: SplitScores | None

    def on(self, split: Split) -> SplitScores | None:
        """Returns the reading of one split; None where the model was not scored on it."""
        readings = {"search": self.search, "selection": self.selection, "report": self.report}
        return readings[split]

    def fitness(self, split: Split) -> tuple[float, ...] | None:
        """Returns the fitness on one split, ``(objectives,)``; None where there is none."""
        reading = self.on(split)
        return reading.fitness if reading is not None else None

    def score(self, split: Split, metric: str) -> float | None:
        """Returns one score on one split; None where there is none."""
        reading = self.on(split)
        return reading.scores.get(metric) if reading is not None else None

    def evidence(self, split: Split, metric: str) -> str:
        """Returns chance and interval of one score in words; "" where it states none."""
        reading = self.on(split)
        if reading is None:
            return ""
        return evidence(reading.chances.get(metric), reading.intervals.get(metric))

    def failure(self, split: Split) -> str | None:
        """Returns why the model has no fitness on one split; None where it has one."""
        reading = self.on(split)
        if reading is None:
            return "it was not scored"
        return reading.failure or ("it has no fitness" if reading.fitness is None else None)


def evidence(chance: float | None, interval: Sequence[float] | None) -> str:
    """Returns what stands beside a score: its 95 % interval, and what chance gives.

    Example:
        >>> evidence(1.404, (0.9, 2.1)), evidence(0.5, None), evidence(None, None)
        ('0.9 to 2.1, chance 1.404', 'chance 0.5', '')
    """
    parts = [] if interval is None else [f"{interval[0]:.4g} to {interval[1]:.4g}"]
    parts += [] if chance is None else [f"chance {chance:.4g}"]
    return ", ".join(parts)


def fitness_of(value: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """Returns a fitness as ``(objectives,)``, from a number, a list or nothing."""
    if value is None:
        return None
    if isinstance(value, (int, float)):
        return (float(value),)
    return tuple(float(number) for number in value)


def _reading(entry: Json | None) -> SplitScores | None:
    if entry is None:
        return None
    scores = {k: float(v) for k, v in (entry.get("scores") or {}).items() if v is not None}
    return SplitScores(
        fitness_of(entry.get("fitness")),
        scores,
        entry.get("failure"),
        entry.get("chances") or {},
        entry.get("intervals") or {},
    )


def models_of(summary: Json) -> list[ModelRow]:
    """Returns the rows of a ``summary.json``, in its order."""
    return [
        ModelRow(
            entry["name"],
            entry["kind"],
            _reading(entry.get("search")),
            _reading(entry.get("selection")),
            _reading(entry.get("report")),
        )
        for entry in summary["models"]
    ]


def tasks_of(summary: Json, split: Split = "search") -> list[TaskColumn]:
    """Returns the tasks of a ``summary.json``, in its order.

    Args:
        summary: of a finished run.
        split: with ``report`` come, last, those that are asked of held-out items alone.
    """
    entries = dict(summary["tasks"])
    if split == "report":
        entries |= summary.get("report_tasks") or {}
    return [
        TaskColumn(name, entry["metric"], entry["direction"]) for name, entry in entries.items()
    ]


def shown_split(models: Sequence[ModelRow]) -> Split:
    """Returns ``report``, or ``search`` where the run has no held-out items."""
    return "report" if any(model.report is not None for model in models) else "search"


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


@dataclass(frozen=True)
class RunFiles:
    """A run directory in memory; files that an unfinished run lacks are None or empty.

    Args:
        path: the directory.
        history: records of ``history.jsonl``, one per evaluation.
        seconds: evaluation id to seconds, from ``timing.jsonl``.
        summary: ``summary.json``; None while the run is unfinished.
        recipe: ``recipe.json``; None while the run is unfinished.
        environment: ``environment.json``, empty where it is missing.
        certificate: ``certificate.json``; None where there is none.
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
