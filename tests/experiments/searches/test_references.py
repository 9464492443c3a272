from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.runs import progress
from experiments.runs.model_scores import ModelScores
from experiments.runs.progress import ProgressBar
from experiments.searches import references, steps
from merging.arrays import Vector
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell


class Total:
    """An objective that is one task's score."""

    def fitness(self, scores: Mapping[str, float]) -> Vector:
        return np.array([scores["text/acc"]])


def test_the_best_static_merges_are_chosen_by_search_score() -> None:
    levels = {"a": 0.2, "b": 0.5, "failed": None, "c": 0.5, "d": 0.9}
    models = [ModelScores("base", "base", "search", {"text/acc": 1.0})]
    for name, level in levels.items():
        scores, failure = ({}, "no") if level is None else ({"text/acc": level}, None)
        models.append(ModelScores(name, "static", "search", scores, failure))
    objective: Any = Total()
    assert steps.best_statics(models, objective, 2) == ["d", "b"]  # of equals the first
    assert steps.best_statics(models, objective, 3) == ["d", "b", "c"]
    assert steps.best_statics(models, objective, 0) == []
    assert steps.best_statics(models, objective, None) == ["d", "b", "c", "a"]
    private = [ModelScores(name, "static", "search", {}, "private") for name in levels]
    assert steps.best_statics(private, objective, 2) == list(levels)


def test_every_phase_of_a_search_tells_how_far_it_is(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LONG_S", 0.0)  # as if each took seconds
    line = overrides(world, "baselines=few", "initial=best_static", "adapter_rank=2", "out=run")
    ended = shell.run("search", *line, "budget.evaluations=2", "strategy=random")
    assert ended.code == 0, ended.stderr
    lines = [each.partition(": ") for each in ended.stderr.splitlines() if each[:1].islower()]
    told = [what for what, colon, _ in lines if colon]
    assert told == [
        "loading the model",
        *(f"preparing {split} items" for split in ("search", "selection", "report")),
        *(f"{work} base and experts" for work in ("hashing and reading", "holding")),
        "trying a merge and requests",
        "timing the steps of the run",
        *["references on search items"] * 2,
        "starts on search items",
        "search",
        "second look on selection items",
        "saving the model",
        "saving the adapter",
        "inside the hull",
        "second look on selection items",
        "best in hull on report items",
        "references on report items",
        "evolved on selection items",
        "certificate",
        "writing the report",
    ]
    of = [counts.split()[0].split("/") for _, _, counts in lines]
    assert all(done == total for done, total in of)


def test_references_and_search_tell_how_far_they_are(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (references, steps):
        monkeypatch.setattr(module, "ProgressBar", partial(ProgressBar, every_s=0.0))
    line = overrides(world, "in_hull=null", "baselines=few", "save_model=false")
    ended = shell.run("search", *line, "budget.evaluations=2", "strategy=random", "out=run")
    assert ended.code == 0, ended.stderr
    assert "\r" not in ended.stderr
    assert "search: 2/2 evaluations, best " in ended.stderr
    for split, models in (("search", 4), ("search", 3), ("report", 8)):
        assert f"references on {split} items: 2/{models} models, about " in ended.stderr
        assert f"references on {split} items: {models}/{models} models" in ended.stderr
