"""Per-item scores in a run's files: written once, equal bytes, whole after a kill."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from experiments.runs.item_scores import cases_path, read_item_scores
from experiments.searches.references import References
from search.loop import jsonl


class Panel:
    """What `References` reads of a panel."""

    def __init__(self, split: str, items: tuple[str, ...] = ("x", "y")) -> None:
        self.split = split
        self.evaluators = {"code": SimpleNamespace(items=SimpleNamespace(digests=items))}


class FakeIngredients:
    """Scores a number: two items beside it, one metric without items, one not finite."""

    def scorer(self, panel: Panel) -> Any:
        def score(weights: float) -> dict[str, Score]:
            if weights < 0:
                raise EvaluationError("too low")
            cases = np.array([weights, weights + 1.0])
            return {
                "code/acc": Score(weights + 0.5, cases),
                "code/perplexity": Score(1.0),
                "code/odd": Score(1.0, np.array([1.0, np.inf])),
            }

        return score


def scored(run: Path, *models: tuple[str, str, str, float]) -> References:
    ingredients: Any = FakeIngredients()
    references = References(ingredients, {}, run)
    for name, kind, split, weights in models:
        panel: Any = Panel(split)
        references.score_one(name, kind, panel, lambda w=weights: w)  # type: ignore[misc,arg-type]
    return references


MODELS = [("base", "base", "search", 0.0), ("base", "base", "report", 0.0)]
MODELS += [("ties", "static", "report", 0.25), ("evolved", "evolved", "selection", 0.5)]


def test_items_are_read_back_by_kind_and_name(tmp_path):
    scored(tmp_path, *MODELS)
    found = read_item_scores(tmp_path, "report")
    assert list(found) == [("base", "base"), ("static", "ties")]
    assert list(found["static", "ties"].cases) == ["code/acc"]
    assert found["static", "ties"].cases["code/acc"].tolist() == [0.25, 1.25]
    assert list(read_item_scores(tmp_path, "selection")) == [("evolved", "evolved")]
    assert list(read_item_scores(tmp_path, "search")) == [("base", "base")]


def test_equal_runs_have_equal_bytes_and_a_second_start_adds_nothing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        scored(tmp_path / name, *MODELS)
    scored(tmp_path / "b", *MODELS)
    for split in ("search", "report", "selection"):
        first, second = (cases_path(tmp_path / name, split).read_bytes() for name in ("a", "b"))
        assert first == second


def test_killed_between_the_two_files_ends_the_same(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        scored(tmp_path / name, *MODELS)
    run = tmp_path / "killed"
    jsonl.keep_first(run / "references.jsonl", 2)
    scored(run, *MODELS)
    for name in ("references.jsonl", "report_cases.jsonl", "selection_cases.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_model_that_cannot_be_scored_has_no_items(tmp_path):
    scored(tmp_path, ("bad", "static", "report", -1.0), ("good", "static", "report", 1.0))
    assert list(read_item_scores(tmp_path, "report")) == [("static", "good")]


def test_other_items_have_another_digest(tmp_path):
    ingredients: Any = FakeIngredients()
    references = References(ingredients, {}, tmp_path)
    for name, items in (("a", ("x", "y")), ("b", ("y", "x")), ("c", ("x", "y"))):
        panel: Any = Panel("report", items)
        references.score_one(name, "static", panel, lambda: 1.0)  # type: ignore[arg-type,return-value]
    found = read_item_scores(tmp_path, "report")
    digests = [found["static", name].items["code"] for name in "abc"]
    assert digests[0] == digests[2] != digests[1]


def test_run_without_items_has_none(tmp_path):
    assert read_item_scores(tmp_path, "report") == {}


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "report_cases.jsonl").write_text('{"id": 0, "name": "base"}\n')
    with pytest.raises(ValueError, match=r"report_cases.jsonl, line 1 lacks \['kind', 'items'"):
        read_item_scores(tmp_path, "report")
