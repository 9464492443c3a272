"""The strategy that need not be chosen, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.runs.model_scores import ModelScores
from experiments.searches.auto_start import weak_tasks
from experiments.searches.disclosure import look_again
from experiments.searches.references import References
from experiments.setup.initial import BestOf, Initial, Static, Weighted, scored_plans
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.linear import Linear
from merging.methods.ties import Ties
from search.loop import jsonl
from search.loop.history import Record
from search.objective import Pareto
from search.strategies.auto import Auto
from search.strategies.random_search import RandomSearch
from tests.experiments.local import EXPERTS, overrides
from tests.experiments.refusals import Shell
from tests.search.strategies.contract import AXES


def test_auto_pays_for_its_start_keeps_it_to_the_end_and_says_what_it_did(
    shell: Shell, world: Path
) -> None:
    options = ("strategy=auto", "budget.evaluations=32", "finalists=1", "save_model=false")
    ended = shell.run("search", *overrides(world, *options, "strategy.patience=1", "out=run"))
    assert ended.code == 0, ended.stderr
    run = shell.cwd / "run"
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "references.jsonl").read_text().splitlines()]
    starts = [m for m in lines if m["kind"] in ("static", "start") and m["split"] == "search"]
    scored = {m["name"] for m in starts if m["failure"] is None}
    assert len(starts) == len({m["name"] for m in starts}), "a static merge was scored twice"
    paid = min(len(scored), 16)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert sum(line["same_as"] is None for line in history) == 32 - paid
    assert summary["evaluations"] == 32
    assert summary["item_evaluations"] == 32 * summary["items"]["text"]["search"]
    inside = (run / "in_hull" / "history.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["same_as"] is None for line in inside) == 32
    finalists = {each["id"]: each["selection"][0] for each in summary["finalists"]}
    (note,) = [note for note in summary["notes"] if note.startswith("auto: ")]
    mean = int(note.partition("; candidate ")[2].partition(" is the mean")[0])
    assert set(finalists) == {max(history, key=lambda h: h["fitness"])["id"], 0, mean}
    assert summary["fitness"] == max(finalists.values()) >= finalists[0]
    best = max(starts, key=lambda m: -m["scores"].get("text/bits_per_byte", 1e9))
    assert history[0]["scores"]["text/bits_per_byte"] == best["scores"]["text/bits_per_byte"]
    assert f"{len(scored)} merges were scored" in note
    assert f"counts as {paid} of 32 evaluations; the best is {best['name']}" in note
    assert "the whole model (" in note
    assert f"note: {note}" in ended.stdout


def test_only_merges_that_the_start_was_chosen_from_are_paid_for(
    world: Path, tmp_path: Path
) -> None:
    pool = ExpertPool.open(str(world / "base"), {n: f"{world}/base-{n}" for n in EXPERTS})
    for number, name in enumerate(("linear", "ties")):
        line = ModelScores(name, "static", "search", {"text/bits": 1.0}).to_json()
        jsonl.append(tmp_path / "references.jsonl", {"id": number, **line})
    ingredients: Any = SimpleNamespace(held=pool)
    references = References(ingredients, {"linear": Linear(), "ties": Ties()}, tmp_path)

    def paid(initial: Initial) -> list[str]:
        return [model.name for model in references.starts(scored_plans(initial, pool))]

    assert paid(Weighted()) == []
    assert paid(Static(Ties(), Whole())) == []
    assert paid(BestOf({"first": Static(Ties(), Whole())})) == ["ties"]


@pytest.mark.parametrize(("accuracy", "bits", "named"), [(0.69, 2.4, "quiz"), (0.71, 2.6, "code")])
def test_a_task_that_keeps_little_of_its_experts_gain_is_named(
    accuracy: float, bits: float, named: str
) -> None:
    known = {"base": (0.5, 3.0), "quizzer": (0.9, 3.1), "coder": (0.4, 2.0)}
    models = {
        name: ModelScores(
            name,
            "base" if name == "base" else "expert",
            "report",
            {"quiz/acc": values[0], "code/bits": values[1]},
        )
        for name, values in known.items()
    }
    scores = {name: model.scores for name, model in models.items()}
    objective = Pareto().bind(
        {"quiz/acc": "maximize", "code/bits": "minimize"},
        {"quiz": "quiz/acc", "code": "code/bits"},
        scores.pop("base"),
        scores,
    )
    winner = {"quiz/acc": accuracy, "code/bits": bits}
    strategy = Auto(axes=AXES, seed=0)
    (line,) = weak_tasks(strategy, objective, models, winner)
    assert line.startswith(f"task '{named}' was given up in part: the merge keeps 4")
    assert (
        weak_tasks(strategy, objective, models, {**winner, "quiz/acc": 0.9, "code/bits": 2.0})
        == []
    )
    models = {"base": models["base"], "quizzer": models["quizzer"]}
    (line,) = weak_tasks(strategy, objective, models, {"quiz/acc": 0.9, "code/bits": 3.2})
    assert line.startswith("task 'code' was given up in part: no expert is better than the base")
    assert "code/bits 3.2, base 3)" in line
    assert weak_tasks(strategy, objective, models, {"quiz/acc": 0.9, "code/bits": 3.1}) == []
    assert weak_tasks(RandomSearch(axes=AXES, seed=0), objective, models, winner) == []


@pytest.mark.parametrize(("mean", "named"), [(0.6, 7), (0.4, 0), (None, 3)])
def test_without_selection_items_a_mean_is_named_unless_the_start_is_better(
    tmp_path: Path, mean: float | None, named: int
) -> None:
    fitness = {0: 0.5, 3: 0.9, 7: mean}
    records = [
        Record(i, [i], {}, None if value is None else np.array([value]))
        for i, value in fitness.items()
    ]

    def winner(keeps: tuple[int, ...]) -> int:
        references: Any = SimpleNamespace(ingredients=SimpleNamespace(panels={}))
        problem: Any = SimpleNamespace(strategy=SimpleNamespace(keeps=keeps))
        result: Any = SimpleNamespace(records=records)
        objective: Any = None
        return look_again(references, problem, result, objective, 1, tmp_path)[0].id

    assert (winner((0, 7)), winner((0,)), winner(())) == (named, 3, 3)
