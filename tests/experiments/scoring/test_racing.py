"""Racing through the command line: counted, resumed to the bit, refused where senseless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from evaluators.engine.engine import Engine
from experiments.runs.directory import identity_config
from experiments.runs.files import read_lines
from tests.experiments.commands.test_beyond_hull import KEPT, run, stop_early
from tests.experiments.local import overrides, write_texts
from tests.experiments.refusals import Shell

ITEMS, EVALUATIONS = 16, 12
SEARCHES = {
    "halving": ["strategy=cma", "space=weights", "strategy.popsize=5", "racing=halving"],
    "paired test": ["strategy=m2n2", "racing=paired_test", "racing.looks=[0.25,0.5]"],
}


def options(tmp_path: Path, *more: str) -> list[str]:
    data = write_texts(tmp_path / "many.jsonl", first=500, count=ITEMS)
    chosen = [f"search_on.text.data={data}", f"budget.evaluations={EVALUATIONS}", "finalists=2"]
    return [*chosen, "save_model=false", *more]


@pytest.mark.parametrize("name", SEARCHES)
def test_resumes_to_the_bit_and_counts_what_was_asked(
    shell: Shell, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[int] = []
    answer = Engine.run

    def watched(engine: Engine, requests: Any) -> Any:
        asked.append(len(requests))
        return answer(engine, requests)

    chosen = options(tmp_path, *SEARCHES[name])
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", watched)
        whole = run(shell, world, "whole", chosen)
    history = read_lines(whole / "history.jsonl")
    estimates = [line["asked"] for line in history if "asked" in line]
    assert 0 < len(estimates) < EVALUATIONS == len(history)
    counted = sum(line.get("asked", ITEMS) for line in history)
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["item_evaluations"] == counted
    base_and_experts, others = 4, 4  # items of each of the other panels
    finalists = len(summary["finalists"])
    others_asked = base_and_experts * (ITEMS + 2 * others) + (finalists + 2) * others
    warmed_up = 2 * others + ITEMS  # before the search: at most, of each panel
    assert counted <= sum(asked) - others_asked <= counted + warmed_up + 5 * ITEMS
    by_id = {line["id"]: line for line in history}
    assert all("asked" not in by_id[each["id"]] for each in summary["finalists"])
    assert f"{len(estimates)} of {EVALUATIONS} candidates were dropped" in (
        whole / "report.html"
    ).read_text(encoding="utf-8")
    stopped = shell.cwd / "stopped"
    stop_early(whole, stopped, 7)
    resumed = run(shell, world, "stopped", chosen)
    for file in KEPT:
        assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file


def test_survivors_score_as_without_racing(shell: Shell, world: Path, tmp_path: Path) -> None:
    """The first generation is the same; stages batch other requests together, which rounds."""
    chosen = options(tmp_path, *SEARCHES["halving"][:3], "budget.evaluations=5")
    alone = read_lines(run(shell, world, "alone", chosen) / "history.jsonl")
    raced = read_lines(run(shell, world, "raced", [*chosen, "racing=halving"]) / "history.jsonl")
    compared = 0
    for one, other in zip(alone, raced, strict=True):
        assert one["genome"] == other["genome"]
        if "asked" not in other:
            compared += 1
            assert other["fitness"] == pytest.approx(one["fitness"], rel=1e-5)
    assert compared
    assert np.isfinite([line["fitness"] for line in raced]).all()


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("common_items=0.5", "racing Halving: common_items=0.5 gives every generation items of"),
        ("objective=pareto", "racing Halving: .* the objective has 3: choo"),
        (
            "budget.evaluations=3",
            r"budget.evaluations=3 ends within the first generation of \d+, p",
        ),
        ("racing.eta=1", "racing.eta must be above 1, got 1"),
        ("racing.rungs=[0.5,0.2]", r"racing.rungs must ascend between 0 and 1, got \[0.5, 0.2\]"),
        (
            "strategy=m2n2 && space=lineage && racing.against_best=false",
            "racing Halving: GeneticAlgorithm asks for 1 candidate at a time, which has none",
        ),
        ("racing=paired_test && racing.alpha=0", "racing.alpha must lie between 0 and 1, got 0"),
        ("racing=item_response && racing.warm_up=0", "racing.warm_up must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_raced_is_refused(shell: Shell, option: str, pattern: str) -> None:
    line = ["experiment=quickstart", "baselines=none", "tracker=none", "racing=halving"]
    shell.refuse(pattern, "search", *line, *option.split(" && "))


def test_a_metric_without_items_is_refused(shell: Shell, world: Path, tmp_path: Path) -> None:
    more = options(tmp_path, "objective.metrics={text: perplexity}", "racing=paired_test")
    own = {option.partition("=")[0] for option in more}
    given = overrides(world, "in_hull=null", "out=out")
    common = [each for each in given if each.partition("=")[0] not in own]
    shell.refuse(
        "racing PairedTest compares candidates item by item, text/perplexity is no mean over",
        *("search", *common, *more),
    )


def test_racing_is_part_of_a_runs_identity() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        unset, given = (
            compose("search", overrides=[f"racing={each}"]) for each in ("none", "halving")
        )
    assert not identity_config(unset)["racing"]
    assert identity_config(given)["racing"]["eta"] == 3.0
