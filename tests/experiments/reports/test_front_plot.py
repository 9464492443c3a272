"""Skill against a limited metric: points, front, and a constrained search's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.reports.front_plot import Point, beyond_limits, constraint_of, front, points_of
from experiments.runs.files import read_lines
from experiments.runs.model_scores import ModelRow, ModelScores
from search.constrained import FLOOR, Constrained
from search.objective import WeightedMean
from tests.experiments.commands.test_beyond_hull import TWO_TASKS
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell

BOUND = Constrained({"leak": {"at_most": 1.5}}, normalize={"code": "raw"}).bind(
    {"code/bits": "minimize", "leak/exposure": "minimize"},
    {"code": "code/bits", "leak": "leak/exposure"},
    {},
    {},
)


def scores(bits: float | None, exposure: float) -> dict[str, float | None]:
    return {"code/bits": bits, "leak/exposure": exposure}


def test_the_front_is_what_no_other_beats_in_both() -> None:
    points = [
        Point("", "candidate", *at) for at in ((1.0, 0.2), (2.0, 0.1), (2.0, 0.6), (3.0, 0.6))
    ]
    assert front(points, 1.0) == [points[0], points[2]]
    assert front(points, -1.0) == [points[3]]


def test_points_are_skills_whatever_the_limits_say() -> None:
    constraint = constraint_of(BOUND)
    assert constraint is not None
    history: list[dict[str, Any]] = [
        {"scores": scores(2.0, 1.0), "same_as": None},
        {"scores": scores(0.5, 9.0), "same_as": None},
        {"scores": scores(None, 9.0), "same_as": None},
        {"scores": scores(2.0, 1.0), "same_as": 0},
        {"scores": {}, "same_as": None},
    ]
    known = {"code/bits": 1.0, "leak/exposure": 3.0}
    base = ModelScores("base", "base", "search", known, fitness=(FLOOR - 1,))
    models = [ModelRow("base", "base", {"search": base}), ModelRow("x", "static", {})]
    assert points_of(history, models, constraint["skills"], "leak/exposure") == [
        Point("", "candidate", 1.0, -2.0),
        Point("", "candidate", 9.0, -0.5),
        Point("base", "base", 3.0, -1.0),
    ]
    other = WeightedMean(normalize="raw").bind({"a/m": "maximize"}, {"a": "a/m"}, {}, {})
    assert constraint_of(other) is None
    assert beyond_limits(FLOOR - 1, {"constraint": constraint})
    assert not beyond_limits(FLOOR - 1, {"constraint": None})


@pytest.mark.parametrize("bound", [2.0])
def test_a_constrained_search_shows_its_front(shell: Shell, world: Path, bound: float) -> None:
    ended = shell.run(
        *("search", *overrides(world), *TWO_TASKS, "objective=constrained", "strategy=random"),
        *(f"objective.limits={{other:{{at_most:{bound}}}}}", "in_hull=null", "baselines=none"),
        *("objective.normalize=raw", "budget.evaluations=4", "out=run", "save_model=false"),
    )
    assert ended.code == 0, ended.stderr
    run = shell.cwd / "run"
    for line in read_lines(run / "history.jsonl"):
        bits = line["scores"]["other/bits_per_byte"]
        expected = (
            FLOOR - (bits / bound - 1) if bits > bound else -line["scores"]["text/bits_per_byte"]
        )
        assert line["fitness"] == pytest.approx([expected])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["constraint"]["limits"] == [
        {"key": "other/bits_per_byte", "bound": bound, "sign": 1.0}
    ]
    page = (run / "report.html").read_text()
    assert "Skill against other/bits_per_byte" in page
    assert 'aria-label="skill against other/bits_per_byte, front of the candidates"' in page
