"""The experiment dedup: its command at the size of a trial, sums, verdicts, bad input."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def command(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pythonpath = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": pythonpath, "EVOMERGE_STATE": str(tmp_path / "s")}
    environment.pop("EVOMERGE_SENTENCES", None)
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", "search", "experiment=dedup", *options,
         f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'run'}"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip


def test_without_sentences_the_remedy_is_named(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode != 0
    assert "set EVOMERGE_SENTENCES" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_trial_prints_compression_accuracy_and_epsilon(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    done = command(tmp_path, "fast=true")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "RESULTS.md").read_text()
    for part in ("A trial", "equal blocks only", "serve the base", "*published*", "ε*"):
        assert part in page
    assert (tmp_path / "run" / "ratios.png").stat().st_size > 10_000
    cells = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "run/cells").glob("*.json")}
    for name, cell in cells.items():
        if name.endswith(("dred", "drd", "greedy", "svt")):
            floor = cell["before"] - 0.015
            assert "svt" in name or cell["after"] >= floor - 1e-9
            trivial = cells["-".join(name.split("-")[:3]) + "-baselines"]
            spent = [trivial[key]["epsilon"] for key in ("epsilon", "base_epsilon")]
            apart = "disjoint" in name
            assert math.isclose(cell["epsilon"]["added"], max(spent) if apart else sum(spent))
            assert max(spent) - 1e-9 <= cell["epsilon"]["epsilon"] <= sum(spent) + 1e-9
    again = command(tmp_path, "fast=true")
    assert "20 jobs" not in again.stdout or "0 finished" not in again.stdout
    assert (tmp_path / "run" / "RESULTS.md").exists()
