"""A run directory as a search leaves it, built from numbers, for tests of what reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXPERTS = ("code", "prose", "config")
FAILURE = "CUDA out of memory: batch of 8192 tokens, even after halving it to 512"


def write_run(
    path: Path,
    *,
    evaluations: int = 60,
    failures: Sequence[int] = (7, 31, 32),
    objectives: int = 1,
    groups: int = 4,
    knobs: Sequence[str] = ("weight",),
    experts: Sequence[str] = EXPERTS,
    finished: bool = True,
    seed: int = 0,
) -> Path:
    """Returns `path`, now a run directory in the layout that `evomerge search` writes."""
    path.mkdir(parents=True)
    history = _history(
        np.random.default_rng(seed), evaluations, failures, objectives, groups, experts
    )
    _lines(path / "history.jsonl", history)
    timing = [
        {"id": line["id"], "seconds": 0.4 + 0.01 * (line["id"] % 7), "at": 1.79e9 + line["id"]}
        for line in history
    ]
    _lines(path / "timing.jsonl", timing)
    (path / "config.yaml").write_text("name: quickstart\nseed: 0\n")
    environment = {
        "command": ["/home/user/.venv/bin/evomerge search", "experiment=quickstart", "seed=0"],
        "python": "3.11.7",
        "platform": "Linux-x86_64",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": None},
        "cuda": [],
        "threads": 2,
        "cores": 2,
    }
    (path / "environment.json").write_text(json.dumps(environment))
    if finished:
        recipe = build_recipe(groups=groups, knobs=knobs, experts=experts)
        summary = build_summary(history, objectives=objectives, experts=experts)
        (path / "recipe.json").write_text(json.dumps(recipe, indent=2))
        (path / "summary.json").write_text(json.dumps(summary, indent=2))
    return path


def build_recipe(
    *, groups: int = 4, knobs: Sequence[str] = ("weight",), experts: Sequence[str] = EXPERTS
) -> dict[str, Any]:
    """Returns a ``recipe.json``; the knob ``scale`` is shared, all others are per expert."""
    rng = np.random.default_rng(1)

    def knob(name: str) -> Any:
        if name == "scale":
            return float(rng.uniform(0.5, 1.5))
        return {expert: float(rng.normal(0.4, 0.5)) for expert in experts}

    return {
        "format": 1,
        "base": {"source": "hub-org/base-model", "sha256": "b" * 64},
        "experts": {
            name: {"source": f"hub-org/{name}", "sha256": f"{index:x}" * 64}
            for index, name in enumerate(experts)
        },
        "kind": "coefficients",
        "merged": list(experts),
        "method": {"_target_": "merging.methods.task_arithmetic.TaskArithmetic"},
        "grouping": {"kind": "Layers", "every": 1},
        "coefficients": {
            f"layers.{index}" if index else "embeddings": {name: knob(name) for name in knobs}
            for index in range(groups)
        },
        "dtype": "float32",
        "privacy": None,
        "created_by": "evomerge 0.1.0",
    }


def build_summary(
    history: Sequence[dict[str, Any]] = (),
    *,
    objectives: int = 1,
    experts: Sequence[str] = EXPERTS,
) -> dict[str, Any]:
    """Returns a ``summary.json`` in which the evolved merge beats every static one."""

    def reading(level: float, own: str | None, shift: float) -> dict[str, Any]:
        gains = {name: level + (0.5 if name == own else 0.0) - shift for name in experts}
        scores = {f"{name}/bits_per_byte": 2.5 - 0.4 * gain for name, gain in gains.items()}
        scores["questions/acc"] = 0.25 + 0.3 * level - shift
        fitness = [float(np.mean(list(gains.values()))), level - 2 * shift, level][:objectives]
        return {"fitness": fitness, "scores": scores, "failure": None}

    def row(name: str, kind: str, level: float, own: str | None = None) -> dict[str, Any]:
        search, report = reading(level, own, 0.0), reading(level, own, 0.02)
        selection = reading(level, own, 0.01) if kind == "evolved" else None
        return {
            "name": name, "kind": kind, "search": search, "selection": selection, "report": report,
        }  # fmt: skip

    broken = {"fitness": None, "scores": {}, "failure": "weights sum to zero"}
    models = [
        row("base", "base", 0.0),
        *(row(name, "expert", 0.35, own=name) for name in experts),
        row("uniform average", "static", 0.62),
        row("ties", "static", 0.7),
        row("task arithmetic 0.4", "static", 0.74),
        {"name": "slerp", "kind": "static", "search": broken, "selection": None, "report": broken},
        row("evolved", "evolved", 0.9),
    ]
    tasks = {
        name: {"metric": f"{name}/bits_per_byte", "direction": "minimize"} for name in experts
    }
    tasks["questions"] = {"metric": "questions/acc", "direction": "maximize"}
    failed = sum(line["failure"] is not None for line in history)
    return {
        "name": "quickstart", "run": "quickstart-cma-s0-3f2a9c01", "identity": "3f2a9c01d4e5",
        "seed": 0,
        "strategy": "Nevergrad(CMA)", "method": "TaskArithmetic",
        "space": "CoefficientSpace, 12 dimensions",
        "objectives": ["fitness"] if objectives == 1 else ["code", "prose", "config"][:objectives],
        "tasks": tasks,
        "models": models,
        "finalists": [
            {"id": 57, "search": [0.9] * objectives, "selection": [0.89] * objectives},
            {"id": 40, "search": [0.905] * objectives, "selection": [0.88] * objectives},
        ],
        "fitness": 0.89, "optimism": 0.02,
        "budget": {"evaluations": 60, "seconds": None, "target": None}, "stop": "evaluations",
        "evaluations": len(history), "item_evaluations": 600 * len(history), "failures": failed,
        "repeats": 0, "seconds": 81.4, "peak_memory_bytes": 1_234_567_890, "device": "cpu",
        "dtype": "float32",
    }  # fmt: skip


def _history(
    rng: np.random.Generator,
    evaluations: int,
    failures: Sequence[int],
    objectives: int,
    groups: int,
    experts: Sequence[str],
) -> list[dict[str, Any]]:
    records = []
    for index in range(evaluations):
        level = 0.9 * (1 - math.exp(-index / 15)) + float(rng.normal(0, 0.06))
        level = -6.0 if index == 4 else level  # one candidate far below all others
        failed = index in failures
        scores = {f"{name}/bits_per_byte": 2.5 - 0.4 * level for name in experts}
        scores["questions/acc"] = 0.25 + 0.3 * level
        fitness = (
            [level]
            if objectives == 1
            else [level - 0.3 * k * rng.random() for k in range(objectives)]
        )
        records.append(
            {
                "id": index,
                "genome": rng.normal(0.4, 0.4, groups * len(experts)).round(6).tolist(),
                "scores": {} if failed else scores,
                "fitness": None if failed else fitness,
                "failure": FAILURE if failed else None,
                "same_as": None,
            }
        )
    return records


def _lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
