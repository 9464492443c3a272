from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from experiments.runs.errors import UserError
from experiments.searches import wandb_log
from experiments.searches.tracking import (
    NoTracker,
    Tracker,
    WandbTracker,
    candidate_table,
    result_numbers,
)
from search.loop.history import Record
from tests.experiments.run_directories import build_summary

RUN_ID = "3f2a9c01d4e5"
CONFIG = {"name": "quickstart", "seed": 3, "strategy": {"optimizer": "CMA"}}


@pytest.fixture(autouse=True)
def _wandb_at_rest(monkeypatch, tmp_path):
    """No setting of the developer's own, and no way to a server."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def record(i: int, fitness: float | None = 0.0, **more) -> Record:
    value = None if fitness is None else np.array([fitness])
    failure = "out of memory" if fitness is None else None
    scores = {} if fitness is None else {"code/bits_per_byte": 2.5 - fitness}
    return Record(i ^ 1, [0.1 * i, -0.2], scores, value, failure, seconds=0.25, **more)


def start(tracker: Tracker, run_dir: Path) -> None:
    run_dir.mkdir(exist_ok=True)
    tracker.start(CONFIG, run_dir, RUN_ID)


def logs(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))


def messages(path: Path, kind: str) -> list:
    found = [r for r in wandb_log.records(path) if r.WhichOneof("record_type") == kind]
    return [getattr(r, kind) for r in found]


def at_rest(path: Path) -> Path:
    """Returns `path` once W&B's own process, which outlives `finish`, has written all of it."""
    sizes = [-1]
    for _ in range(60):
        sizes.append(path.stat().st_size)
        if sizes[-1] == sizes[-2] > 7:
            return path
        time.sleep(0.7)
    raise TimeoutError(f"{path} is still being written")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a run of 400 candidates, which fills more than one block of 32 KiB."""
    run_dir = tmp_path_factory.mktemp("tracked") / "quickstart-cma-s3"
    tracker = WandbTracker(project="merges", group="sweep", tags=["a", "b"])
    start(tracker, run_dir)
    for i in range(400):
        tracker.log(record(i, None if i == 7 else i / 400), replayed=False)
    recipe = run_dir / "recipe.json"
    recipe.write_text('{"format": 1}')
    tracker.finish(build_summary(), [recipe])
    at_rest(logs(run_dir)[0])
    return run_dir


def test_offline_run_holds_identity_and_configuration(finished):
    (path,) = logs(finished)
    assert path.stat().st_size > 2 * 32 * 1024
    (run,) = messages(path, "run")
    assert (run.run_id, run.project, run.run_group) == (RUN_ID, "merges", "sweep")
    assert run.display_name == "quickstart-cma-s3"
    assert list(run.tags) == ["a", "b"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG


def test_offline_run_holds_one_step_per_candidate(finished):
    steps = wandb_log.steps(logs(finished)[0])
    assert list(steps) == list(range(401))  # the last one is the candidate table
    assert steps[12]["fitness"] == pytest.approx(12 / 400)
    assert steps[12]["code/bits_per_byte"] == pytest.approx(2.5 - 12 / 400)
    assert steps[12]["seconds"] == 0.25
    assert steps[7]["failed"] == 1.0
    assert "fitness" not in steps[7]
    assert steps[7]["best_fitness"] == pytest.approx(6 / 400)


def test_offline_run_holds_candidate_table(finished):
    (path,) = finished.glob("wandb/offline-run-*/files/media/table/*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == [
        "id", "genome", "fitness", "code/bits_per_byte", "failure", "same_as",
    ]  # fmt: skip
    assert len(table["data"]) == 400
    assert table["data"][7] == [6, json.dumps([0.1 * 7, -0.2]), None, None, "out of memory", None]
    assert table["data"][8][2] == pytest.approx(0.02)


def test_offline_run_holds_recipe_as_artifact_and_result(finished):
    (path,) = logs(finished)
    artifacts = {artifact.type: artifact for artifact in messages(path, "artifact")}
    recipe = artifacts["recipe"]
    assert recipe.name == f"recipe-{RUN_ID}"
    (content,) = recipe.manifest.contents
    assert content.path == "recipe.json"
    assert Path(content.local_path).read_text() == '{"format": 1}'
    summary = {
        item.key or "/".join(item.nested_key): item.value_json
        for message in messages(path, "summary")
        for item in message.update
    }
    assert json.loads(summary["result/evolved/report/fitness"]) == pytest.approx(0.88)
    assert json.loads(summary["result/optimism"]) == 0.02


def test_everything_lies_below_the_run_directory(finished):
    staged = [
        Path(content.local_path)
        for artifact in messages(logs(finished)[0], "artifact")
        for content in artifact.manifest.contents
    ]
    assert len(staged) == 2
    assert all(path.is_relative_to(finished) and path.exists() for path in staged)
    assert "WANDB_DATA_DIR" not in os.environ


def test_restart_logs_only_the_missing_steps_under_the_same_id(tmp_path):
    run_dir = tmp_path / "run"
    first = WandbTracker()
    start(first, run_dir)
    for i in range(3):
        first.log(record(i, 0.1 * i), replayed=False)
    first.finish(build_summary(), [])
    at_rest(logs(run_dir)[0])
    second = WandbTracker()
    start(second, run_dir)
    for i in range(5):  # the search replays its history into the tracker
        second.log(record(i, 0.1 * i), replayed=i < 3)
    second.finish(build_summary(), [])
    old, new = map(at_rest, logs(run_dir))
    assert [key for key, v in wandb_log.steps(old).items() if "fitness" in v] == [0, 1, 2]
    assert [key for key, v in wandb_log.steps(new).items() if "fitness" in v] == [3, 4]
    assert {messages(path, "run")[0].run_id for path in (old, new)} == {RUN_ID}
    tables = sorted(new.parent.glob("files/media/table/*.table.json"))
    assert len(json.loads(tables[0].read_text())["data"]) == 5


def test_killed_run_is_continued_with_what_had_not_reached_the_disk(tmp_path):
    run_dir = tmp_path / "run"
    script = """
import os, sys
from pathlib import Path
from tests.experiments.searches.test_tracking import record, start
from experiments.searches.tracking import WandbTracker
tracker = WandbTracker()
start(tracker, Path(sys.argv[1]))
for i in range(300):
    tracker.log(record(i), replayed=False)
os._exit(9)
"""
    root = Path(__file__).parents[3]
    killed = subprocess.run([sys.executable, "-c", script, str(run_dir)], cwd=root, check=False)
    assert killed.returncode == 9
    at_rest(logs(run_dir)[0])
    tracker = WandbTracker()
    start(tracker, run_dir)
    for i in range(310):
        tracker.log(record(i), replayed=i < 300)
    tracker.finish(build_summary(), [])
    seen = [i for path in logs(run_dir) for i, v in wandb_log.steps(path).items() if "failed" in v]
    assert sorted(seen) == list(range(310))


def test_cut_off_log_is_read_up_to_the_cut(finished, tmp_path):
    whole = logs(finished)[0].read_bytes()
    cut = tmp_path / "run-x.wandb"
    known = 0
    for size in (0, 3, 7, 9, 32 * 1024 - 3, 32 * 1024 + 2, 50_000):
        cut.write_bytes(whole[:size])
        steps = wandb_log.steps(cut)
        assert list(steps) == list(range(len(steps)))
        assert len(steps) >= known
        known = len(steps)
    assert 50 < known < 400


def test_foreign_log_is_not_trusted(tmp_path, caplog):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"another format")
    assert wandb_log.steps(path) == {}
    assert "is not in the format" in caplog.text


def test_the_users_wandb_mode_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandbTracker(mode="online")
    start(tracker, tmp_path / "run")
    tracker.log(record(0), replayed=False)
    recipe = tmp_path / "recipe.json"
    recipe.write_text("{}")
    tracker.finish(build_summary(), [recipe])
    assert logs(tmp_path / "run") == []


def test_online_without_a_login_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"wandb login.*tracker\.mode=offline or tracker=none"):
        start(WandbTracker(mode="online"), tmp_path / "run")


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match=r"tracker\.mode 'ofline' is none of offline, online"):
        WandbTracker(mode="ofline")


def test_log_before_start_is_refused():
    with pytest.raises(RuntimeError, match="call start before log"):
        WandbTracker().log(record(0), replayed=False)
    with pytest.raises(RuntimeError, match="call start before log"):
        WandbTracker().finish(build_summary(), [])


def test_several_objectives_have_a_column_each():
    many = Record(0, [1.0], {}, np.array([0.5, 0.25]), None)
    columns, rows = candidate_table([many, record(0, None)])
    assert columns == ["id", "genome", "fitness_1", "fitness_2", "failure", "same_as"]
    assert rows == [
        [0, "[1.0]", 0.5, 0.25, None, None],
        [1, "[0.0, -0.2]", None, None, "out of memory", None],
    ]


def test_result_numbers_leave_out_what_is_missing():
    numbers = result_numbers(build_summary())
    assert numbers["result/base/search/questions/acc"] == pytest.approx(0.25)
    assert numbers["result/evolved/selection/fitness"] == pytest.approx(0.89)
    assert not any(key.startswith("result/slerp") for key in numbers)
    assert all(isinstance(value, (int, float)) for value in numbers.values())


@pytest.mark.parametrize(("name", "cls"), [("wandb", WandbTracker), ("none", NoTracker)])
def test_configuration_builds_the_tracker(name, cls):
    with initialize_config_module("conf", version_base="1.3"):
        tracker = instantiate(compose(f"tracker/{name}").tracker, _convert_="all")
    assert isinstance(tracker, cls)
    assert isinstance(tracker, Tracker)


def test_no_tracker_writes_nothing(tmp_path):
    tracker = NoTracker()
    start(tracker, tmp_path / "run")
    tracker.log(record(0), replayed=False)
    tracker.finish(build_summary(), [])
    assert list((tmp_path / "run").iterdir()) == []
