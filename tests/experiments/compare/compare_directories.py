"""Finished runs with per-item scores, built from numbers, for tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TASKS = {"code": 60, "choice": 40}
METRICS = {"code": "code/bits_per_byte", "choice": "choice/acc"}
WEIGHTS = {"code": 0.75, "choice": 0.25}
BASE = {"code": 2.5, "choice": 0.3}
STATIC = 0.55


def configuration(strategy: str, seed: int, **options: Any) -> dict[str, Any]:
    """Returns a resolved configuration; `options` are dotted with ``__``."""
    parts: dict[str, dict[str, Any]] = {
        "cma": {"_target_": "search.strategies.nevergrad_optimizer.Nevergrad", "optimizer": "CMA"},
        "pso": {"_target_": "search.strategies.nevergrad_optimizer.Nevergrad", "optimizer": "PSO"},
        "random": {"_target_": "search.strategies.random_search.RandomSearch", "spread": 1.0},
    }
    method = {"_target_": "merging.methods.dare_ties.DareTies", "seed": seed}
    config: dict[str, Any] = {
        "name": "search",
        "seed": seed,
        "experts": {"_target_": "experiments.experts.quickstart.source.experts", "seed": 0},
        "space": {"_target_": "merging.spaces.CoefficientSpace", "method": method},
        "method": method,
        "grouping": {"_target_": "merging.grouping.Whole"},
        "strategy": parts[strategy],
        "out": None,
        "runs": "runs",
        "tracker": {"_target_": "experiments.searches.tracking.NoTracker"},
    }
    for key, value in options.items():
        at = config
        *path, last = key.split("__")
        for part in path:
            at = at[part]
        at[last] = value
    return config


def write_finished(
    path: Path,
    *,
    strategy: str = "cma",
    seed: int = 0,
    level: float = 0.7,
    evaluations: int = 30,
    items: bool = True,
    digest: str = "d0",
    finished: bool = True,
    options: Mapping[str, Any] | None = None,
    run_noise: float = 0.0,
    item_noise: float = 0.0,
) -> Path:
    """Returns `path`, now a run whose winner has about fitness `level` on held-out items.

    Args:
        path: of the run directory.
        strategy: ``cma``, ``pso`` or ``random``.
        seed: of the run.
        level: fitness of the winner but for its noise.
        evaluations: of the search; fitness rises linearly to `level`.
        items: keep per-item scores.
        digest: of the held-out items.
        finished: leave a summary.
        options: of the configuration, see `configuration`.
        run_noise: sd of the winner's fitness over seeds.
        item_noise: sd over items of its difference from other winners.
    """
    path.mkdir(parents=True)
    rng = np.random.default_rng([seed, sum(map(ord, strategy)), evaluations])
    config = configuration(strategy, seed, **(options or {}))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "environment.json").write_text(json.dumps({"command": ["evomerge"]}))
    top = level + run_noise * float(rng.normal())
    rising = [top * (i + 1) / evaluations for i in range(evaluations)]
    _lines(path / "history.jsonl", [_record(i, value) for i, value in enumerate(rising)])
    _lines(
        path / "timing.jsonl", [{"id": i, "seconds": 0.5, "at": 0.0} for i in range(evaluations)]
    )
    if not finished:
        return path
    models = {("base", "base"): 0.0, ("expert", "code"): 0.4, ("static", "ties"): STATIC}
    models["evolved", "evolved"] = top
    hardness = np.random.default_rng(7)
    shared = {task: hardness.normal(0, 0.3, count) for task, count in TASKS.items()}
    rows, lines = [], []
    for number, ((kind, name), fitness) in enumerate(models.items()):
        noise = item_noise if kind == "evolved" else 0.0
        cases = {
            METRICS[task]: _cases(task, fitness, shared[task] + noise * rng.normal(size=count))
            for task, count in TASKS.items()
        }
        scores = {key: float(np.mean(values)) for key, values in cases.items()}
        reading = {"fitness": [_fitness(scores)], "scores": scores, "failure": None}
        search = {"fitness": [fitness], "scores": scores, "failure": None}
        rows.append({"name": name, "kind": kind, "search": search, "report": reading})
        rows[-1]["selection"] = search if kind == "evolved" else None
        lines.append(
            {
                "id": number,
                "name": name,
                "kind": kind,
                "items": {task: f"{digest}-{task}" for task in TASKS},
                "cases": {key: values.tolist() for key, values in cases.items()},
            }
        )
    if items:
        _lines(path / "report_cases.jsonl", lines)
    held_out = rows[-1]["report"]["fitness"][0]
    summary = {
        "name": config["name"],
        "seed": seed,
        "objectives": ["mean"],
        "tasks": {
            "code": {"metric": METRICS["code"], "direction": "minimize"},
            "choice": {"metric": METRICS["choice"], "direction": "maximize"},
        },
        "terms": [_term(task) for task in TASKS] if items else None,
        "models": rows,
        "optimism": top - held_out,
        "evaluations": evaluations,
        "item_evaluations": evaluations * sum(TASKS.values()),
        "fitness": top,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def _term(task: str) -> dict[str, Any]:
    sign = -1.0 if task == "code" else 1.0
    term = {"task": task, "key": METRICS[task], "sign": sign, "base": sign * BASE[task]}
    return {**term, "span": 0.5, "weight": WEIGHTS[task]}


def _cases(task: str, fitness: float, noise: Any) -> Any:
    """Returns per-item scores whose normalised mean is `fitness` plus the mean of `noise`."""
    term = _term(task)
    return term["sign"] * (term["base"] + term["span"] * (fitness + noise))


def _fitness(scores: Mapping[str, float]) -> float:
    terms = [_term(task) for task in TASKS]
    return sum(t["weight"] * (t["sign"] * scores[t["key"]] - t["base"]) / t["span"] for t in terms)


def _record(number: int, fitness: float) -> dict[str, Any]:
    return {
        "id": number,
        "genome": [0.1],
        "scores": {},
        "fitness": [fitness],
        "failure": None,
        "same_as": None,
    }


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
