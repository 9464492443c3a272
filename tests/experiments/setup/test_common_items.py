"""Common random items through the command line: one subset a generation, resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from experiments.runs.directory import identity_config
from experiments.runs.files import read_lines
from experiments.setup.common_items import CommonItems
from tests.experiments.commands.test_beyond_hull import KEPT, run, stop_early
from tests.experiments.local import overrides, write_texts
from tests.experiments.refusals import Shell

FULL, PART, EVALUATIONS = 12, 3, 13
ES = ["strategy=mergevolve", "noise=rows", "strategy.popsize=4", "common_items=0.25"]


def options(tmp_path: Path, *more: str) -> list[str]:
    data = write_texts(tmp_path / "many.jsonl", first=500, count=FULL)
    chosen = [f"search_on.text.data={data}", f"budget.evaluations={EVALUATIONS}", "finalists=2"]
    return [*ES, *chosen, *more]


def test_resumes_to_the_bit_and_counts_what_was_asked(
    shell: Shell, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    evaluate = Panel.evaluate

    def watched(panel: Panel, engine: Any) -> Any:
        if panel.split == "search":
            asked.append(next(iter(panel.evaluators.values())).items.digests)
        return evaluate(panel, engine)

    monkeypatch.setattr(Panel, "evaluate", watched)
    whole = run(shell, world, "whole", options(tmp_path))
    history = read_lines(whole / "history.jsonl")
    assert [line["items"] for line in history] == [0] * 5 + [1] * 4 + [2] * 4
    parts = [items for items in asked if len(items) == PART]
    assert [len(set(parts[a:b])) for a, b in ((0, 5), (5, 9), (9, 13))] == [1, 1, 1]
    assert len(set(parts)) == 3
    rescored = read_lines(whole / "rescored.jsonl")
    assert len(rescored) == 4
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["evaluations"] == EVALUATIONS
    assert summary["item_evaluations"] == EVALUATIONS * PART + 4 * FULL
    base_and_experts = 4
    assert sum(map(len, asked)) == summary["item_evaluations"] + base_and_experts * FULL
    by_id = {line["id"]: line["fitness"] for line in rescored}
    assert len(summary["finalists"]) == 2
    assert all(each["search"] == by_id[each["id"]] for each in summary["finalists"])
    assert summary["models"][-1]["search"]["fitness"] == by_id[summary["finalists"][0]["id"]]
    assert "random items of its own" in (whole / "report.html").read_text()
    for candidates in (2, 7, EVALUATIONS):
        stopped = shell.cwd / f"stopped{candidates}"
        stop_early(whole, stopped, candidates)
        resumed = run(shell, world, stopped.name, options(tmp_path))
        for name in (*KEPT, "rescored.jsonl"):
            assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


def test_best_that_fail_on_all_items_are_told_by_those_of_their_generations(
    shell: Shell, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Panel.evaluate
    whole: list[Panel] = []

    def broken(panel: Panel, engine: Any) -> Any:
        if panel.split == "search" and panel.item_count == FULL:
            whole.append(panel)
            if len(whole) > 4:  # base and experts
                raise EvaluationError("bits_per_byte is nan, no finite score")
        return evaluate(panel, engine)

    monkeypatch.setattr(Panel, "evaluate", broken)
    out = run(shell, world, "broken", options(tmp_path, "budget.evaluations=5"))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["notes"][0].startswith("all 4 candidates that were scored again on all search")
    history = {line["id"]: line["fitness"] for line in read_lines(out / "history.jsonl")}
    assert all(each["search"] == history[each["id"]] for each in summary["finalists"])


def test_without_selection_items_and_beside_a_search_in_the_hull(
    shell: Shell, world: Path, tmp_path: Path
) -> None:
    common = [each for each in overrides(world) if not each.startswith("select_on")]
    ended = shell.run(
        *("search", *common, *options(tmp_path, "evaluator@select_on=none"), "out=out")
    )
    assert ended.code == 0, ended.stderr
    summary = json.loads((shell.cwd / "out" / "summary.json").read_text())
    best = [each["search"][0] for each in summary["finalists"]]
    assert best == sorted(best, reverse=True)
    assert summary["fitness"] == best[0]
    inside = read_lines(shell.cwd / "out" / "in_hull" / "history.jsonl")
    assert len(inside) >= EVALUATIONS
    assert not any("items" in line for line in inside)
    certificate = json.loads((shell.cwd / "out" / "certificate.json").read_text())
    winner = certificate["points"][certificate["winner"]]
    assert winner["search"] == summary["finalists"][0]["search"]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("common_items=1", "common_items=1: it must be below 1"),
        ("common_items=0", "common_items=0: it must be above 0"),
        ("common_items=half", "common_items=half: expected a number or null"),
        ("choose=shrinkage", "common_items=0.25: choose=shrinkage needs every candidate's score"),
        ("budget.target=1", "common_items=0.25: budget.target would be reached by luck"),
        ("objective=pareto", "the objective has 3: choose an objective"),
        ("strategy=oneplusone", "NevergradStrategy asks for one candidate at a time, which has"),
        ("strategy=model_swarms", "ModelSwarms compares candidates with those of earlier gener"),
        (
            "strategy=crossover && space=lineage",
            "GeneticAlgorithm compares candidates with those of e",
        ),
        (
            "strategy=mergevolve && space=full_weights && strategy.patience=3",
            "strategy.patience compares scores of different generations: set strategy.patience=n",
        ),
    ],
)
def test_what_compares_generations_is_refused(shell: Shell, option: str, pattern: str) -> None:
    line = ["experiment=quickstart", "baselines=none", "tracker=none", "common_items=0.25"]
    shell.refuse(pattern, "search", *line, *option.split(" && "))


def test_a_share_of_items_is_part_of_a_runs_identity() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        unset, given = (
            compose("search", overrides=[f"common_items={each}"]) for each in ("null", "0.5")
        )
    assert identity_config(unset)["common_items"] is None
    assert identity_config(given)["common_items"] == 0.5
    assert CommonItems.open(unset, None) is None  # type: ignore[arg-type]
