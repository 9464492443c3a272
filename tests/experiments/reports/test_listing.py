from __future__ import annotations

import json

import pytest

from experiments.reports.listing import listing
from experiments.runs.directory import locked
from tests.experiments.refusals import Shell
from tests.experiments.run_directories import write_run


@pytest.fixture
def runs(tmp_path):
    """Three runs: a finished one with a companion inside, a stopped one, one of another layer."""
    done = write_run(tmp_path / "runs" / "done")
    (done / "report.html").write_text("")
    write_run(done / "in_hull")
    write_run(tmp_path / "runs" / "sweep" / "half", finished=False, evaluations=12)
    write_run(tmp_path / "runs" / "worn", finished=False)
    return tmp_path / "runs"


def cells(lines: list[str]) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in (line.split() for line in lines)}


def test_runs_are_listed_with_state_fitness_and_time(runs):
    (runs / "worn" / "history.jsonl").write_text("{broken}\n")
    table = cells(listing(runs))
    assert list(table) == ["run", "done", "sweep/half", "worn"]
    summary = json.loads((runs / "done" / "summary.json").read_text())
    assert table["done"] == ["finished", str(summary["evaluations"]), "0.8900", "81", "s"]
    history = map(json.loads, (runs / "sweep/half/history.jsonl").read_text().splitlines())
    best = max(line["fitness"][0] for line in history if line["fitness"])
    assert table["sweep/half"] == ["stopped", "12", f"({best:.4f})", "5", "s"]
    assert table["worn"][0] == "damaged"
    assert cells(listing(runs / "done"))["done"] == table["done"]


def test_a_run_at_work_is_said_to_be_running(runs):
    half = runs / "sweep" / "half"
    with locked(half):
        assert cells(listing(runs))["sweep/half"][0] == "running"
    assert cells(listing(runs))["sweep/half"][0] == "stopped"


def test_a_directory_without_runs_is_refused(shell: Shell, runs):
    assert "done" in shell.run("runs", str(runs)).stdout
    shell.refuse("holds no run: name a directory above some", "runs", "nowhere")
