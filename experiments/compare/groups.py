"""Finished runs read back and sorted into groups that agree in everything but the seed."""

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from evaluators.split import Split
from experiments.compare.labels import labels as group_labels
from experiments.compare.labels import show
from experiments.runs.directory import flatten, identity_config
from experiments.runs.files import Json, RunFiles
from experiments.runs.item_scores import ItemScores, read_item_scores
from experiments.runs.model_scores import ModelRow, TaskColumn, models_of, tasks_of
from merging.arrays import Vector


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Args:
        options: dotted key to value of its configuration, the seed left out wherever it went.
        best: ``(evaluations,)`` best fitness so far (the mean of several objectives) after each
            evaluation, without repeats, which cost nothing; NaN before the first success.
        seconds: ``(evaluations,)`` time spent in evaluations up to each; NaN: not recorded.
        items: held-out scores per item by (kind, name); empty: the run keeps none.
    """

    path: Path
    seed: int
    options: Mapping[str, Any]
    summary: Json
    models: Sequence[ModelRow]
    best: Vector
    seconds: Vector
    items: Mapping[tuple[str, str], ItemScores]

    @property
    def tasks(self) -> list[TaskColumn]:
        """Tasks with their main metrics."""
        return tasks_of(self.summary)

    @property
    def winner(self) -> ModelRow:
        """The evolved model."""
        return next(model for model in self.models if model.kind == "evolved")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration with different seeds.

    Args:
        label: the options in which the groups differ, or the runs' name where that says it all.
        options: the options in which the groups differ, as text.
    """

    label: str
    options: Mapping[str, str]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs, ascending."""
        return tuple(run.seed for run in self.runs)


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Returns the run directories that are named, lie below a named one, or match a pattern.

    Raises:
        ValueError: a path does not exist, or there is no run at it.
    """
    named: list[Path] = []
    for path in paths:
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path)))]
        runs = [run for match in matches for run in _below(match)]
        if not runs:
            raise ValueError(
                f"{path}: no run there; name directories that `evomerge search` printed, or one "
                "that holds them"
            )
        named += runs
    return list({run.resolve(): run for run in named}.values())


def _below(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    if (path / "config.yaml").exists() and (path / "environment.json").exists():
        return [path]
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    return [run for entry in inside for run in _below(entry)]


def read_run(path: Path) -> Run | None:
    """Returns a run; None where it has not finished.

    Raises:
        ValueError: a file of the run is damaged; names it.
    """
    if not (path / "history.jsonl").exists() or not (path / "summary.json").exists():
        return None
    files = RunFiles.read(path)
    assert files.summary is not None
    config = OmegaConf.load(path / "config.yaml")
    if not isinstance(config, DictConfig) or not isinstance(config.get("seed"), int):
        raise ValueError(f"{path / 'config.yaml'} names no seed: it is no run's configuration")
    options = flatten(identity_config(config))
    seed = options.pop("seed")
    new = [line for line in files.history if line["same_as"] is None]
    fitness = [math.nan if x["fitness"] is None else float(np.mean(x["fitness"])) for x in new]
    return Run(
        path=path,
        seed=seed,
        options=options,
        summary=files.summary,
        models=models_of(files.summary),
        best=np.fmax.accumulate(np.array(fitness, np.float64)),
        seconds=np.cumsum([files.seconds.get(int(line["id"]), math.nan) for line in new]),
        items=read_item_scores(path, "report"),
    )


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Returns the groups in the order of their first runs, and what was left out and why."""
    followers = _followers(runs)
    members: dict[str, list[Run]] = {}
    options: dict[str, dict[str, Any]] = {}
    for run in runs:
        kept = {key: value for key, value in run.options.items() if key not in followers}
        identity = repr(sorted((key, show(value)) for key, value in kept.items()))
        members.setdefault(identity, []).append(run)
        options.setdefault(identity, kept)
    named, differing = group_labels(list(options.values()))
    groups, notes = [], []
    for label, shown, alike in zip(named, differing, members.values(), strict=True):
        by_seed: dict[int, Run] = {}
        for run in alike:
            if run.seed in by_seed:
                notes.append(f"{run.path} repeats {by_seed[run.seed].path} and is left out.")
            by_seed.setdefault(run.seed, run)
        groups.append(Group(label, shown, tuple(by_seed[seed] for seed in sorted(by_seed))))
    return groups, notes


def _followers(runs: Sequence[Run]) -> set[str]:
    """Returns the options that only repeat the run's seed, such as a random method's."""
    named = {key for run in runs for key in run.options if key.rpartition(".")[2] == "seed"}
    return {
        key for key in named if all(run.options.get(key, run.seed) == run.seed for run in runs)
    }


def fitness_on(model: ModelRow, split: Split) -> float | None:
    """Returns a model's fitness, the mean of several objectives; None: it has none."""
    fitness = model.fitness(split)
    return None if fitness is None else float(np.mean(fitness))


def gains_of(run: Run, model: tuple[str, str]) -> list[Vector] | None:
    """Returns per task ``(items,)`` a model's held-out scores in units of fitness.

    Args:
        model: kind and name.

    Returns:
        None where the run does not keep per-item scores of every task whose mean is the score:
        a run of an older version has bits per byte of every document by itself.
    """
    items, terms = run.items.get(model), run.summary.get("terms")
    kind, name = model
    labels = (name, f"{name} ({kind})")  # the second where another kind has taken the name
    row = next((m for m in run.models if m.kind == kind and m.name in labels), None)
    if items is None or not terms or row is None or "report" not in row.scores:
        return None
    gains = []
    for term in terms:
        cases, value = items.cases.get(term["key"]), row.score("report", term["key"])
        if cases is None or value is None or not math.isclose(cases.mean(), value, rel_tol=1e-6):
            return None
        gains.append((term["sign"] * cases - term["base"]) / term["span"])
    return gains
