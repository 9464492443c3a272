"""Trackers beside W&B: what their libraries' own readers find after a kill and a restart."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from experiments.runs.errors import UserError
from experiments.searches.trackers.stepped import SteppedTracker
from experiments.searches.tracking import Tracker
from search.loop.history import Record
from tests.experiments.run_directories import build_summary

RUN_ID = "3f2a9c01d4e5"
CONFIG = {"name": "quickstart", "seed": 3, "strategy": {"optimizer": "CMA"}}
NAMES = ("tensorboard", "mlflow", "trackio", "optuna")
Steps = dict[int, dict[str, float]]


def record(i: int) -> Record:
    """The i-th that is told, as an asynchronous search tells: others asked before may follow."""
    asked = i ^ 1
    if i in (0, 7):
        return Record(asked, [0.1 * i, -0.2], {}, None, "out of memory", seconds=0.25)
    scores = {"code/bits_per_byte": 2.5 - i / 100}
    return Record(asked, [0.1 * i, -0.2], scores, np.array([i / 100]), None, seconds=0.25)


def opened(name: str, run_dir: Path, config: dict[str, Any] = CONFIG) -> Tracker:
    with initialize_config_module("conf", version_base="1.3"):
        tracker = instantiate(compose(f"tracker/{name}").tracker, _convert_="all")
    assert isinstance(tracker, Tracker)
    run_dir.mkdir(exist_ok=True)
    tracker.start(config, run_dir, RUN_ID)
    return tracker


def in_tensorboard(run_dir: Path) -> Steps:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0}).Reload()
    assert events.Tags()["tensors"] == ["config/text_summary"]
    steps: Steps = {}
    for tag in events.Tags()["scalars"]:
        seen = [event.step for event in events.Scalars(tag)]
        assert len(seen) == len(set(seen)), f"{tag} stands twice at a step"
        for event in events.Scalars(tag):
            steps.setdefault(event.step, {})[tag] = event.value
    return steps


def in_mlflow(run_dir: Path) -> Steps:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("evomerge")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == f"{run_dir.name}-{RUN_ID[:8]}"
    assert run.data.params["strategy.optimizer"] == "CMA"
    assert (Path(run.info.artifact_uri.removeprefix("file://")) / "recipe.json").exists() == (
        run.info.status == "FINISHED"
    )
    steps: Steps = {}
    for key in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, key)
        assert len({metric.step for metric in history}) == len(history), f"{key} stands twice"
        for metric in history:
            steps.setdefault(metric.step, {})[key] = metric.value
    return steps


def in_trackio(run_dir: Path) -> Steps:
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_run_records("evomerge")
    assert run["name"] == f"{run_dir.name}-{RUN_ID[:8]}"
    logs = SQLiteStorage.get_logs("evomerge", run["name"], run_id=run["id"])
    assert len({line["step"] for line in logs}) == len(logs)
    return {line["step"]: line for line in logs}


def study_of(run_dir: Path) -> Any:
    """The one study of a run, through what optuna-dashboard opens a path with if it is here."""
    import optuna

    path = str(run_dir / "optuna.log")
    try:
        from optuna_dashboard._storage_url import get_storage
    except ImportError:
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        storage = JournalStorage(JournalFileBackend(path))
    else:
        storage = get_storage(path)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def in_optuna(run_dir: Path) -> Steps:
    study = study_of(run_dir)
    found = {}
    for trial in study.trials:
        assert trial.params == {"x0": 0.1 * trial.number, "x1": -0.2}
        assert (trial.value is None) == ("failure" in trial.user_attrs)
        fitness = {} if trial.value is None else {"fitness": trial.value}
        found[trial.number] = {**trial.user_attrs, **fitness}
    assert study.user_attrs["configuration"] == CONFIG
    if "result/fitness" in study.user_attrs:
        found[len(study.trials)] = study.user_attrs
    return found


READERS: dict[str, Callable[[Path], Steps]] = {
    "tensorboard": in_tensorboard,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
    "optuna": in_optuna,
}
KILLED = """
import os, sys, time
from pathlib import Path
from tests.experiments.searches.test_trackers import opened, record
tracker = opened(sys.argv[1], Path(sys.argv[2]))
for i in range(20):
    tracker.log(record(i), replayed=False)
if sys.argv[1] in ("tensorboard", "trackio"):  # let some of it reach the disk
    time.sleep(1.0)
for i in range(20, 23):
    tracker.log(record(i), replayed=False)
os._exit(9)
"""


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_continued_is_one_run_with_every_step_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    run_dir = tmp_path / "run"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _move_trackio(monkeypatch, tmp_path / "trackio")
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, name, str(run_dir)], cwd=root, check=False
    )
    assert killed.returncode == 9
    if name in ("mlflow", "optuna"):
        assert len(READERS[name](run_dir)) == 23
    if name == "optuna":  # and killed within the last line
        os.truncate(run_dir / "optuna.log", (run_dir / "optuna.log").stat().st_size - 9)
    tracker = opened(name, run_dir)
    for i in range(30):
        tracker.log(record(i), replayed=i < 23)
    recipe = run_dir / "recipe.json"
    recipe.write_text("{}")
    tracker.finish(build_summary(), [recipe])
    steps = READERS[name](run_dir)
    assert sorted(steps) == list(range(31))
    for i in set(range(30)) - {0, 7}:
        assert steps[i]["fitness"] == pytest.approx(i / 100)
        assert steps[i]["code/bits_per_byte"] == pytest.approx(2.5 - i / 100)
    assert "fitness" not in steps[7]
    assert steps[30]["result/evolved/report/fitness"] == pytest.approx(0.88)
    config = (
        {**CONFIG, "seed": 4} if name == "mlflow" else CONFIG
    )  # as of an option that may change
    again = opened(name, run_dir, config)  # killed between the tracker's end and the report
    for i in range(30):
        again.log(record(i), replayed=True)
    again.finish(build_summary(), [recipe])
    assert READERS[name](run_dir).keys() == steps.keys()


def _move_trackio(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Trackio reads its place where it is imported: all that took it over is given the other."""
    for module in [m for n, m in sys.modules.items() if n.partition(".")[0] == "trackio"]:
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", place)


def test_optuna_knows_ranges_at_the_end(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    tracker = opened("optuna", tmp_path / "run")
    for i in range(12):
        tracker.log(record(i), replayed=False)
    tracker.finish(build_summary(), [])
    study = study_of(tmp_path / "run")
    assert len({repr(trial.distributions) for trial in study.trials}) == 1
    assert study.trials[0].distributions["x0"].high == pytest.approx(1.1)
    assert study.best_trial.number == 11
    assert study.trials[3].duration.total_seconds() == pytest.approx(0.25)
    assert optuna.importance.get_param_importances(study)["x0"] > 0.9


class Kept(SteppedTracker):
    """Keeps steps where a library would."""

    extra = "kept"
    held: ClassVar[dict[int, Any]] = {}

    def _open(self, config: Mapping[str, Any], run_dir: Path, name: str) -> Collection[int]:
        return list(self.held)

    def _write(self, step: int, record: Record, metrics: Mapping[str, float]) -> None:
        assert step not in self.held
        self.held[step] = record.id

    def _close(self, step: int, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        if numbers:
            self._write(step, record(0), numbers)


def test_candidates_told_in_another_order_have_a_step_each_and_the_result_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "held", {})
    ids = [2, 0, 5, 3]  # 1 and 4 were dropped at the end of the budget
    for stop in (3, 4, 4):
        tracker = Kept()
        tracker.start(CONFIG, tmp_path, RUN_ID)
        for i in ids[:stop]:
            tracker.log(dataclasses.replace(record(1), id=i), replayed=False)
        if stop == 4:
            tracker.finish(build_summary(), [])
    assert list(Kept.held.items())[:4] == list(enumerate(ids))
    assert list(Kept.held) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    if name == "tensorboard":
        monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=rf"pip install -e '\.\[{name}\]', or set tracker=none"):
        opened(name, tmp_path / "run")
