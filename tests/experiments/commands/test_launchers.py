"""Sweeps through Hydra's launchers: joblib's processes, and submitit as on Slurm, but here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments.local import evomerge, overrides

QUICK = ["baselines=none", "in_hull=null", "save_model=false", "budget.evaluations=2", "threads=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "module"),
    [
        (
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
            "hydra_plugins.hydra_joblib_launcher",
        ),
        (["hydra/launcher=submitit_local"], "hydra_plugins.hydra_submitit_launcher"),
    ],
    ids=["joblib", "submitit"],
)
def test_a_sweep_is_launched_and_finished_runs_are_not_run_again(
    launcher: list[str], module: str, world: Path, tmp_path: Path
) -> None:
    pytest.importorskip(module)
    line = ["search", "-m", *launcher, *overrides(world, *QUICK, "seed=0,1")]
    runs = f"runs={tmp_path}/runs"
    first = evomerge(*line, runs, cwd=tmp_path, timeout_s=500)
    assert first.returncode == 0, first.stderr
    found = sorted((tmp_path / "runs").glob("search-*-s*-*"))
    seeds = [json.loads((path / "summary.json").read_text())["seed"] for path in found]
    assert sorted(seeds) == [0, 1]
    before = [(path / "summary.json").stat().st_mtime_ns for path in found]
    second = evomerge(*line, runs, cwd=tmp_path, timeout_s=500)
    assert second.returncode == 0, second.stderr
    assert [(path / "summary.json").stat().st_mtime_ns for path in found] == before
