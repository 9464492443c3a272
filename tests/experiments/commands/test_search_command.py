"""The search command as a person runs it: from another directory, killed, continued, swept."""

from __future__ import annotations

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.experiments.local import evomerge, overrides, write_texts
from tests.experiments.refusals import Shell

KEPT = ("history.jsonl", "cases.jsonl", "references.jsonl", "finalists.jsonl", "recipe.json")


def finished(root: Path, cwd: Path, *more: str, env: dict[str, str] | None = None) -> str:
    done = evomerge("search", *overrides(root, *more), cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    stdout = finished(world, out.parent, f"out={out}")
    assert "evolved" in stdout
    assert "static ties" in stdout
    return out


def test_run_directory_is_complete(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {*KEPT, "config.yaml", "timing.jsonl", "summary.json", "environment.json"} <= names
    assert {"model", "report.html"} <= names
    assert not [name for name in names if name.endswith((".tmp", ".part"))]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluations"] == 8
    assert len((run / "history.jsonl").read_text().splitlines()) == 8
    kinds = [model["kind"] for model in summary["models"]]
    assert kinds == ["base"] + ["expert"] * 3 + ["static"] * 3 + ["in_hull", "evolved"]


def test_model_loads_and_rebuild_is_bit_identical(run: Path, tmp_path: Path) -> None:
    done = evomerge(
        "rebuild", str(run / "recipe.json"), "--out", str(tmp_path / "m"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    first = load_file(run / "model" / "model.safetensors")
    again = load_file(tmp_path / "m" / "model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    for directory in (run / "model", tmp_path / "m"):
        model = AutoModelForCausalLM.from_pretrained(directory)
        tokens = AutoTokenizer.from_pretrained(directory)("hello", return_tensors="pt")
        assert torch.isfinite(model(**tokens).logits).all()


def test_same_seed_gives_the_same_run_in_another_process_and_streamed(
    run: Path, world: Path, tmp_path: Path
) -> None:
    options = (f"out={tmp_path}/again", "stream=true", "batch_tokens=null")
    finished(world, tmp_path, *options, env={"PYTHONHASHSEED": "77"})
    for name in KEPT:
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_second_start_shows_the_finished_run(run: Path, world: Path, tmp_path: Path) -> None:
    before = (run / "summary.json").stat().st_mtime_ns
    assert "evolved" in finished(world, tmp_path, f"out={run}")
    assert (run / "summary.json").stat().st_mtime_ns == before


def test_shared_items_are_dropped_and_said(shell: Shell, world: Path, tmp_path: Path) -> None:
    selection = write_texts(tmp_path / "selection.jsonl", first=2)  # the search has 0 to 3
    report = write_texts(tmp_path / "report.jsonl", first=3)
    panels = [f"select_on.text.data={selection}", f"report_on.text.data={report}"]
    few = ["baselines=none", "in_hull=null", "save_model=false", "budget.evaluations=1"]
    ended = shell.run("search", *overrides(world, *panels, *few), f"out={tmp_path}/out")
    assert ended.code == 0, ended.stderr
    expected = [
        "selection task 'text': 2 of 4 items are search items of 'text' too: dropped",
        "report task 'text': 1 of 4 items are search items of 'text' too: dropped",
        "report task 'text': 2 of 4 items are selection items of 'text' too: dropped",
    ]
    assert [line for line in ended.stdout.splitlines() if line.startswith("overlap")] == [
        f"overlap     {line}" for line in expected
    ]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["overlap"] == expected
    assert "1 of 4 items are search items" in (tmp_path / "out" / "report.html").read_text()
    cases = (tmp_path / "out" / "report_cases.jsonl").read_text().splitlines()
    assert len(json.loads(cases[0])["cases"]["text/bits_per_byte"]) == 1


def test_more_static_merges_are_read_of_a_finished_run(
    shell: Shell, world: Path, tmp_path: Path
) -> None:
    """One static merge, the best on the search items, is read; all are when asked for later."""
    out = tmp_path / "out"
    line = [f"out={out}", "in_hull=null", "save_model=false", "evaluator@select_on=none"]
    line = [o for o in overrides(world, *line) if not o.startswith("select_on")]

    def started(*more: str) -> dict[str, dict[str, Any]]:
        ended = shell.run("search", *line, *more)
        assert ended.code == 0, ended.stderr
        models = json.loads((out / "summary.json").read_text())["models"]
        return {model["name"]: model for model in models if model["kind"] == "static"}

    few = started("baselines.report=1")
    best = max(few, key=lambda name: few[name]["search"]["fitness"])
    assert [name for name, model in few.items() if model["report"] is not None] == [best]
    read = [json.loads(each)["name"] for each in (out / "report_cases.jsonl").open()]
    assert read == ["base", "code", "prose", "maths", best, "evolved"]
    history = (out / "history.jsonl").read_bytes()
    every = started("baselines.report=all")
    assert all(model["report"]["fitness"] is not None for model in every.values())
    assert (out / "history.jsonl").read_bytes() == history
    assert every == started("baselines.report=0")  # shown, and nothing is forgotten


def test_two_processes_do_not_share_a_run(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "busy"
    out.mkdir()
    with (out / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = evomerge("search", *overrides(world, f"out={out}"), cwd=tmp_path)
    assert done.returncode == 2
    assert re.search("another process is at work on this run", done.stderr)


def test_sweep_runs_each_once_and_a_second_start_skips_them(world: Path, tmp_path: Path) -> None:
    line = ["search", "-m", *overrides(world, "strategy=cma,random", "seed=0,1", "tracker=wandb")]
    line = [o for o in line if o not in ("tracker=none",)]
    runs = f"runs={tmp_path}/runs"
    first = evomerge(*line, runs, "budget.evaluations=4", cwd=tmp_path, timeout_s=500)
    assert first.returncode == 0, first.stderr
    found = sorted((tmp_path / "runs").glob("search-*-s*-*"))
    assert len(found) == 4
    for path in found:
        assert list((path / "wandb").glob("offline-run-*/run-*.wandb")), path
    before = {path: (path / "summary.json").stat().st_mtime_ns for path in found}
    second = evomerge(*line, runs, "budget.evaluations=4", cwd=tmp_path, timeout_s=500)
    assert second.returncode == 0, second.stderr
    assert sorted((tmp_path / "runs").glob("search-*-s*-*")) == found
    assert {path: (path / "summary.json").stat().st_mtime_ns for path in found} == before
