"""What models scored, split by split: the rows and columns of a run's result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from evaluators.split import Split
from experiments.runs.files import Json

if TYPE_CHECKING:  # a finished run is shown without torch
    from evaluators.evaluator import Direction, Score
    from search.objective import Objective

Kind = Literal["base", "expert", "static", "start", "in_hull", "evolved"]
IN_HULL = "best in hull"  # name of the companion search's winner
SPLITS: tuple[Split, ...] = ("search", "selection", "report")


@dataclass(frozen=True)
class TaskColumn:
    """One task: its display name, its main metric ``task/metric`` and that metric's direction."""

    name: str
    metric: str
    direction: Direction


@dataclass(frozen=True)
class ModelScores:
    """What one model scored on one split.

    Args:
        name: of the model; a static merge has its method's name.
        scores: ``task/metric`` to value in the metric's own units; empty: it has none.
        chances: what chance gives, for the scores that state it.
        intervals: ends of the 95 % interval, for the scores that state it.
        fitness: ``(objectives,)``, higher is better; None: no objective has judged it.
        cut_offs: share of the answers that were cut off, for the scores that state it.
    """

    name: str
    kind: Kind
    split: Split
    scores: Mapping[str, float]
    failure: str | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    fitness: tuple[float, ...] | None = None
    cut_offs: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, kind: Kind, split: Split, scores: Mapping[str, Score]) -> ModelScores:
        """Returns what evaluators gave a model."""
        values = {key: float(score.value) for key, score in scores.items()}
        return cls(name, kind, split, values, **stated(scores))

    @classmethod
    def from_json(cls, entry: Json) -> ModelScores:
        """Returns what `to_json` wrote; a score that is null is left out."""
        scores = {k: float(v) for k, v in (entry.get("scores") or {}).items() if v is not None}
        return cls(
            entry["name"],
            entry["kind"],
            entry["split"],
            scores,
            entry.get("failure"),
            entry.get("chances") or {},
            entry.get("intervals") or {},
            fitness_of(entry.get("fitness")),
            entry.get("cut_offs") or {},
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the line of ``references.jsonl``, but for its number."""
        cell = self.cell()
        del cell["fitness"]
        return {"name": self.name, "kind": self.kind, "split": self.split, **cell}

    def cell(self) -> dict[str, Any]:
        """Returns what ``summary.json`` holds of it; what scores state where there is any."""
        return {
            "fitness": None if self.fitness is None else list(self.fitness),
            "scores": dict(self.scores),
            "failure": self.failure,
            **({"chances": dict(self.chances)} if self.chances else {}),
            **({"intervals": dict(self.intervals)} if self.intervals else {}),
            **({"cut_offs": dict(self.cut_offs)} if self.cut_offs else {}),
        }

    def judged(self, objective: Objective | None) -> ModelScores:
        """Returns the same with the fitness that `objective` makes of it, if it can."""
        if self.failure is not None or objective is None:
            return self
        return replace(self, fitness=fitness_of(objective.fitness(self.scores).tolist()))


@dataclass(frozen=True)
class ModelRow:
    """A row of the result: the base, an expert, a static merge or the winner of a search.

    Args:
        name: of the row; a static merge's is its method's.
        scores: by split; one that is missing was not asked.
    """

    name: str
    kind: Kind
    scores: Mapping[Split, ModelScores]

    @classmethod
    def from_json(cls, entry: Json) -> ModelRow:
        """Returns the row of an entry of ``summary.json``."""
        model = {"name": entry["name"], "kind": entry["kind"]}
        scores = {
            split: ModelScores.from_json({**entry[split], **model, "split": split})
            for split in SPLITS
            if entry.get(split) is not None
        }
        return cls(**model, scores=scores)

    @property
    def label(self) -> str:
        """Name to show; those of experts and static merges with their kind."""
        return f"{self.kind} {self.name}" if self.kind in ("expert", "static") else self.name

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of ``summary.json``."""
        entry: dict[str, Any] = {"name": self.name, "kind": self.kind}
        for split in SPLITS:
            scores = self.scores.get(split)
            entry[split] = None if scores is None else scores.cell()
        return entry

    def fitness(self, split: Split) -> tuple[float, ...] | None:
        """Returns the fitness on one split, ``(objectives,)``; None where there is none."""
        scores = self.scores.get(split)
        return None if scores is None else scores.fitness

    def score(self, split: Split, metric: str) -> float | None:
        """Returns one score on one split; None where there is none."""
        scores = self.scores.get(split)
        return None if scores is None else scores.scores.get(metric)

    def cut_off(self, split: Split, metric: str) -> float | None:
        """Returns the share of a task's answers that was cut off; None where none is known."""
        scores = self.scores.get(split)
        return None if scores is None else scores.cut_offs.get(metric)

    def evidence(self, split: Split, metric: str) -> str:
        """Returns chance and interval of one score in words; "" where it states none."""
        scores = self.scores.get(split)
        if scores is None:
            return ""
        return evidence(scores.chances.get(metric), scores.intervals.get(metric))

    def failure(self, split: Split) -> str | None:
        """Returns why the model has no fitness on one split; None where it has one."""
        scores = self.scores.get(split)
        if scores is None:
            return "it was not scored"
        return scores.failure or ("it has no fitness" if scores.fitness is None else None)


def models_of(summary: Json) -> list[ModelRow]:
    """Returns the rows of a ``summary.json``, in its order."""
    return [ModelRow.from_json(entry) for entry in summary["models"]]


def tasks_of(summary: Json, split: Split = "search") -> list[TaskColumn]:
    """Returns the tasks of a ``summary.json``, in its order.

    Args:
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
    return "report" if any("report" in model.scores for model in models) else "search"


def fitness_of(value: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """Returns a fitness as ``(objectives,)``, from a number, a list or nothing."""
    if value is None:
        return None
    return tuple(float(number) for number in np.atleast_1d(value))


def stated(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Returns what scores state besides their value, by ``task/metric``; see `ModelScores`."""
    return {
        "chances": {key: float(s.chance) for key, s in scores.items() if s.chance is not None},
        "intervals": {
            key: list(s.interval) for key, s in scores.items() if s.interval is not None
        },
        "cut_offs": {key: s.cut_off for key, s in scores.items() if s.cut_off is not None},
    }


def told_apart(models: Iterable[ModelScores]) -> list[str]:
    """Returns a sentence for each split's attacks: what is found without a model."""
    blind = {
        (cell.split, key.partition("/")[0]): (cell.scores[key], *cell.intervals[key])
        for cell in models
        for key in cell.intervals
        if key.endswith("/blind_auc")  # the same for every model
    }
    return [_without_model(f"{split} task {task!r}", *auc) for (split, task), auc in blind.items()]


def _without_model(task: str, auc: float, low: float, high: float) -> str:
    found = f"AUC {auc:.3f}, {low:.3f} to {high:.3f}"
    if low <= 0.5:
        return (
            f"{task}: that what was trained on differs from the rest without the model is not "
            f"shown ({found})"
        )
    return (
        f"{task}: what was trained on can be told from the rest without the model ({found}): the "
        "attacks' scores say nothing about memorization"
    )


def evidence(chance: float | None, interval: Sequence[float] | None) -> str:
    """Returns what stands beside a score: its 95 % interval, and what chance gives.

    Example:
        >>> evidence(1.404, (0.9, 2.1)), evidence(0.5, None), evidence(None, None)
        ('0.9 to 2.1, chance 1.404', 'chance 0.5', '')
    """
    parts = [] if interval is None else [f"{interval[0]:.4g} to {interval[1]:.4g}"]
    parts += [] if chance is None else [f"chance {chance:.4g}"]
    return ", ".join(parts)
