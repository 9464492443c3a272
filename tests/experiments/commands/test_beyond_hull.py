"""Every strategy from the command line: recipe, rebuild and resume, whatever its genome."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import builders
from tests.experiments.local import make_world, overrides
from tests.experiments.refusals import Shell

KEPT = ("history.jsonl", "cases.jsonl", "references.jsonl", "finalists.jsonl", "recipe.json")
TWO_TASKS = [f"+{panel}_on.other=${{{panel}_on.text}}" for panel in ("search", "select", "report")]
SEARCHES = {
    "convex": ["strategy=cma", "space=convex"],
    "displaced": ["strategy=cma", "space=weights", "grouping=layers", "initial=static"],
    "best start": ["strategy=oneplusone", "space=weights", "initial=best_of"],
    "auto": ["strategy=auto", "strategy.patience=1", "budget.evaluations=40"],
    "swarm": ["strategy=model_swarms", "space=weights", "strategy.popsize=4"],
    "evolution": ["strategy=mergevolve", "noise=rows", "strategy.popsize=4"],
    "momentum": [
        "strategy=mergevolve",
        "noise=low_rank",
        "strategy.popsize=3",
        "strategy.momentum=0.5",
        "initial=average",
    ],
    "released": [
        "strategy=mergevolve",
        "noise=published",
        "strategy.sigma=0.01",
        "strategy.popsize=3",
        "strategy.pairing=as_released",
    ],
    "crossover": ["strategy=crossover", "initial=scored", "strategy.popsize=4"],
    "m2n2": ["strategy=m2n2"],
    "nsga2": ["strategy=nsga2", *TWO_TASKS],
    "map_elites": ["strategy=map_elites", *TWO_TASKS],
    "cycle_qd": ["strategy=cycle_qd", *TWO_TASKS],
    "layers": ["strategy=random", "space=layer_stack"],
}
FACTORS = ["strategy=mergevolve", "space=factors", "noise=published", "strategy.sigma=0.01"]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def run(shell: Shell, root: Path, out: str, options: list[str]) -> Path:
    own = {option.partition("=")[0] for option in options}
    common = [each for each in overrides(root) if each.partition("=")[0] not in own]
    if "evaluator@select_on=none" in options:
        common = [each for each in common if not each.startswith("select_on")]
    ended = shell.run("search", *common, *options, f"out={out}", "in_hull=null", "baselines=none")
    assert ended.code == 0, ended.stderr
    return shell.cwd / out


def stop_early(whole: Path, stopped: Path, candidates: int) -> None:
    """Makes a copy that looks as if its process had died after so many candidates."""
    shutil.copytree(whole, stopped)
    for path in stopped.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("config.yaml", "environment.json", *KEPT[:3], "timing.jsonl"):
            path.unlink()
    lines = (stopped / "history.jsonl").read_text().splitlines(keepends=True)
    (stopped / "history.jsonl").write_text("".join(lines[:candidates]))


def check(shell: Shell, root: Path, options: list[str]) -> None:
    whole = run(shell, root, "whole", options)
    recipe = whole / "recipe.json"
    assert recipe.stat().st_size < 100_000
    content = json.loads(recipe.read_text())
    assert all(
        len(each["sha256"]) == 64 for each in [content["base"], *content["experts"].values()]
    )
    rebuilt = shell.run("rebuild", str(recipe), "--out", "rebuilt")
    assert rebuilt.code == 0, rebuilt.stderr
    first = load_file(whole / "model" / "model.safetensors")
    again = load_file(shell.cwd / "rebuilt" / "model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    stop_early(whole, shell.cwd / "stopped", 5)
    resumed = run(shell, root, "stopped", options)
    for name in KEPT:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES.keys())
def test_winner_rebuilds_and_a_stopped_run_goes_on_to_the_bit(
    shell: Shell, world: Path, options: list[str]
) -> None:
    check(shell, world, options)


def test_a_stopped_run_does_not_go_on_with_other_experts(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = make_world(tmp_path / "own")
    options = ["strategy=oneplusone", "space=weights"]
    run(shell, own, "whole", options)
    stop_early(shell.cwd / "whole", shell.cwd / "stopped", 5)
    shutil.copy(shell.cwd / "whole" / "ingredients.json", shell.cwd / "stopped")
    expert = own / "base-prose"
    shutil.rmtree(expert)
    builders.llama(expert, like=own / "base", seed=7, scale=0.1)
    again = shell.run(
        "search", *overrides(own), *options, "out=stopped", "in_hull=null", "baselines=none"
    )
    assert again.code == 2
    assert "stopped was begun with another experts.prose: what lies there now has" in again.stderr


def test_factors_of_adapters_too(shell: Shell, world: Path) -> None:
    for seed in range(2):
        builders.lora_adapter(shell.cwd / f"lora{seed}", world / "base", seed=seed)
    experts = f"experts.experts={{a:{shell.cwd}/lora0,b:{shell.cwd}/lora1}}"
    check(shell, world, [*FACTORS, experts, "adapter_rank=8"])
    assert (shell.cwd / "whole" / "adapter" / "adapter_config.json").exists()


def test_shrinkage_names_a_winner_without_selection_items(shell: Shell, world: Path) -> None:
    done = run(shell, world, "out", ["choose=shrinkage", "evaluator@select_on=none"])
    summary = json.loads((done / "summary.json").read_text())
    best = [each["shrunken"] for each in summary["finalists"]]
    assert best == sorted(best, reverse=True)
    assert summary["fitness"] == best[0]
    assert all(each["selection"] is None for each in summary["finalists"])
