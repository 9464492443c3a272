"""Sweeps through Hydra's launchers: joblib's processes, and submitit as on Slurm, but here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments.local import EXPERTS, evomerge, overrides
from tests.experiments.refusals import Shell

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


def _with_a_refused_job(world: Path, *more: str) -> list[str]:
    """A sweep of three jobs, of which the second names an expert that is not there."""
    a, b, _ = (f"{name}:{world}/base-{name}" for name in EXPERTS)
    experts = f"experts.experts={{{a}}},{{{a},gone:not/here/now}},{{{a},{b}}}"
    line = [one for one in overrides(world, *QUICK, *more) if "experts.experts" not in one]
    return ["search", "-m", *line, experts]


def _check_refused(code: object, stderr: str, runs: Path) -> None:
    assert code == 2
    assert len(list(runs.glob("*/report.html"))) == 2
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("evomerge search: job #1 (experts.experts={code:")
    assert last.count("=") == 1
    assert "gone:not/here/now}): " in last
    assert "Traceback" not in stderr
    assert not list(runs.glob(".*"))


@pytest.mark.parametrize("batch", ["null", "1"])
def test_a_refused_job_does_not_end_the_sweep(
    shell: Shell, world: Path, tmp_path: Path, batch: str
) -> None:
    line = _with_a_refused_job(world, f"hydra.sweeper.max_batch_size={batch}")
    ended = shell.run(*line, f"runs={tmp_path}/runs")
    _check_refused(ended.code, ended.stderr, tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_refused_job_does_not_stop_those_beside_it(
    world: Path, tmp_path: Path, jobs: int
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
    line = _with_a_refused_job(world, *launcher, "budget.evaluations=100")
    done = evomerge(*line, f"runs={tmp_path}/runs", cwd=tmp_path, timeout_s=500)
    _check_refused(done.returncode, done.stderr, tmp_path / "runs")
