"""Real Ray clusters on this machine: the same bytes as local, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from evaluators.engine.resident import Resident
from experiments.runs.directory import identity_config
from experiments.runs.errors import UserError
from experiments.runs.files import read_lines
from experiments.scoring.asking import Question
from experiments.scoring.choose import local_asker, local_evaluation
from experiments.scoring.distributed import on_ray
from experiments.scoring.distributed.fleet import Fleet
from experiments.scoring.distributed.worker import Worker
from experiments.setup.dry_run import dry_run
from experiments.setup.execution import WorkerSpec
from experiments.setup.ingredients import Ingredients, open_ingredients, worker_spec
from experiments.setup.problem import Problem
from merging.spaces.space import SearchSpace
from merging.weights import Weights
from search.loop.pool import run_all
from tests.experiments.local import environment, evomerge, overrides, write_texts
from tests.experiments.refusals import Shell

ray = pytest.importorskip("ray")

SHORT = ["baselines=none", "in_hull=null", "save_model=false", "threads=1", "finalists=2"]
SEARCH = [*SHORT, "initial=scored", "strategy.popsize=4", "budget.evaluations=10"]
SAME = ("history.jsonl", "cases.jsonl", "finalists.jsonl", "recipe.json")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No usage statistics, no Ray left behind; workers find the packages of this checkout."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    yield
    ray.shutdown()


def run(shell: Shell, world: Path, out: str, *options: str) -> Path:
    ended = shell.run("search", *overrides(world, *options, f"out={out}"))
    assert ended.code == 0, ended.stderr
    return shell.cwd / out


def same(one: Path, other: Path) -> None:
    for name in SAME:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def many(shell: Shell) -> Path:
    """Returns a file of more items than the world's, so that some can be left unasked."""
    return write_texts(shell.cwd / "many.jsonl", first=500, count=16)


@pytest.fixture
def patient() -> None:
    """Starts Ray, which gives its own processes 15 seconds, too few on a very busy machine."""
    for attempt in range(3):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=False,
                object_store_memory=100 * 2**20,
            )
        except Exception as error:  # Ray raises nothing more precise
            ray.shutdown()
            if attempt == 2:
                pytest.skip(f"Ray does not start on this machine now: {error}")
        else:
            return


@pytest.mark.usefixtures("patient")
def test_two_workers_give_the_same_bytes_as_this_process(shell: Shell, world: Path) -> None:
    local = run(shell, world, "local", *SEARCH)
    workers = run(shell, world, "ray", *SEARCH, "execution=ray")
    same(workers, local)
    assert ray.is_initialized(), "what was not started by the run is left alone"
    raced = [*SEARCH, "racing=halving", f"search_on.text.data={many(shell)}"]
    local = run(shell, world, "raced", *raced)
    assert any("asked" in line for line in read_lines(local / "history.jsonl"))
    same(run(shell, world, "raced_by_ray", *raced, "execution=ray"), local)


class Sabotaged(Fleet):
    """Does something bad to its workers after the third answer."""

    bad: Callable[[Fleet], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answers = 0

    def next(self) -> Any:
        found = super().next()
        self.answers += 1
        if self.answers == 3:
            self._assign()  # every worker has a candidate
            type(self).bad(self)
        return found


def sabotage(monkeypatch: pytest.MonkeyPatch, bad: Callable[[Fleet], None]) -> None:
    monkeypatch.setattr(Sabotaged, "bad", staticmethod(bad), raising=False)
    monkeypatch.setattr(on_ray, "Fleet", Sabotaged)


def pids(fleet: Fleet) -> list[int]:
    return [int(where.split()[1]) for where in fleet.processes.values()]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["common_items=0.5", "racing=halving"])
def test_a_killed_worker_leaves_the_result_identical(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """Every generation has items of its own, or every stage, whoever is asked."""
    items = [option, f"search_on.text.data={many(shell)}"]
    local = run(shell, world, "local", *SEARCH, *items)
    killed: list[int] = []

    def kill(fleet: Fleet) -> None:
        killed.append(pids(fleet)[-1])
        os.kill(killed[0], signal.SIGKILL)

    sabotage(monkeypatch, kill)
    workers = run(shell, world, "ray", *SEARCH, *items, "execution=ray", "execution.workers=2")
    assert killed
    assert not ray.is_initialized(), "a cluster of one's own ends with the run"
    same(workers, local)


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    quick = {
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 4,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_a_removed_node_leaves_the_result_identical(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch, two_nodes: Any
) -> None:
    cluster, second = two_nodes
    local = run(shell, world, "local", *SEARCH)
    removed: list[int] = []

    def remove(fleet: Fleet) -> None:
        removed.append(fleet.size)
        cluster.remove_node(second, allow_graceful=False)

    sabotage(monkeypatch, remove)
    options = ["execution=ray", f"execution.address={cluster.address}"]
    workers = run(shell, world, "ray", *SEARCH, *options)
    assert removed == [2], "as many workers as have room"
    same(workers, local)


@pytest.mark.slow
def test_an_asynchronous_run_that_was_killed_goes_on(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "steady"
    options = overrides(
        world,
        *SHORT,
        "asynchronous=true",
        "strategy=de",
        "strategy.popsize=4",
        "budget.evaluations=40",
        f"out={out}",
    )
    workers = ["execution=ray", "execution.workers=2"]
    command = [sys.executable, "-m", "experiments.cli", "search", *options, *workers]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    history = out / "history.jsonl"
    while process.poll() is None and _count(history) < 6:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = read_lines(history)
    assert 6 <= len(before) < 40
    copy = tmp_path / "alone"
    shutil.copytree(out, copy)
    done = evomerge("search", *options, *workers, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = read_lines(history)
    assert after[: len(before)] == before
    assert sorted(line["id"] for line in after) == list(range(len(after)))
    assert sum(line["same_as"] is None for line in after) == 40
    lost = set(range(before[-1]["after"])) - {line["id"] for line in before}
    assert len(lost) in (1, 2)
    # one worker goes on with what two began, from the same candidates
    alone = [each for each in options if not each.startswith("out=")]
    done = evomerge("search", *alone, f"out={copy}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    there, here = (
        {line["id"]: line for line in read_lines(d / "history.jsonl")} for d in (copy, out)
    )
    for number in lost:
        assert there[number]["genome"] == here[number]["genome"]
        assert there[number]["scores"] == here[number]["scores"]


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@dataclass(frozen=True)
class Opened:
    """A search on the world, opened in this process."""

    ingredients: Ingredients
    problem: Problem
    order: WorkerSpec

    @property
    def space(self) -> SearchSpace[Any]:
        return self.problem.space


@pytest.fixture(scope="module")
def opened(world: Path) -> Opened:
    own = ["initial=average", "space=full_weights", "strategy=mergevolve"]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("search", overrides=overrides(world, *SHORT, *own))
    ingredients, trial = open_ingredients(config, dry_run(config))
    problem = Problem.open(config, ingredients.held, trial.start, config.seed)
    return Opened(ingredients, problem, worker_spec(config, ingredients, problem.start))


@pytest.fixture(scope="module")
def genomes(opened: Opened) -> list[Any]:
    return [candidate.genome for candidate in opened.problem.strategy.ask()][-2:]


def test_a_worker_scores_as_the_main_process_does(opened: Opened, genomes: list[Any]) -> None:
    order = opened.order
    assert json.loads(json.dumps(order.start)) == order.start
    worker = Worker()
    assert worker.prepare(order)["refused"] is None
    genome = genomes[-1]
    (found,) = pickle.loads(pickle.dumps(worker.score([opened.space.to_json(genome)], 0)))
    panel = opened.ingredients.panels["search"]
    own = opened.ingredients.scorer(panel)(opened.space.decode(genome))
    scores = found.scores
    assert scores.keys() == own.keys()
    for name, score in own.items():
        assert scores[name].value == score.value
        np.testing.assert_array_equal(scores[name].cases, score.cases)


def test_a_worker_answers_as_the_main_process_does(
    opened: Opened, genomes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that is in its model already is not written again, another one or a score is."""
    worker = Worker()
    assert worker.prepare(opened.order)["refused"] is None
    encoded = [json.loads(json.dumps(opened.space.to_json(each))) for each in genomes]
    own = local_asker(opened.ingredients, opened.space)
    expected = {
        requests: run_all(own, [Question(genome, requests) for genome in genomes])
        for requests in ((0, 2), (1, 3))
    }
    written: list[Resident] = []
    write = Resident.write

    def watched(resident: Resident, weights: Weights) -> None:
        written.append(resident)
        write(resident, weights)

    monkeypatch.setattr(Resident, "write", watched)
    asked = [(0, (0, 2)), (0, (1, 3)), (1, (1, 3)), (1, (0, 2)), (0, (1, 3))]
    for number, requests in asked:
        answer = worker.ask(encoded[number], requests)
        assert answer.responses == expected[requests][number].responses
    assert len(written) == 3
    worker.score(encoded[1:], 0)
    assert worker.ask(encoded[0], (0, 2)).responses == expected[0, 2][0].responses
    assert len(written) == 5


def test_what_a_node_lacks_is_named(opened: Opened, tmp_path: Path) -> None:
    order = opened.order
    gone = order.config.replace(str(opened.ingredients.pool.base.source), str(tmp_path / "gone"))
    refused = Worker().prepare(replace(order, config=gone))["refused"]
    assert re.search(f"{tmp_path}/gone.* does not exist; expected a checkpoint", refused)
    refused = Worker().prepare(replace(order, experts={**order.experts, "code": "0"}))["refused"]
    assert refused.startswith("code has other content than where the search was started: give ev")
    refused = Worker().prepare(replace(order, items={"text": "0"}))["refused"]
    assert refused.startswith("task 'text' (its search items) has other content than where the s")
    refused = Worker().prepare(replace(order, device="cuda"))["refused"]
    assert "no CUDA device is visible, but the main process computes on one: set exec" in refused


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["execution.workers=0"], "execution: execution.workers must be at least 1 or null"),
        (["execution.workers=few"], "execution.workers=few: expected a whole number or null"),
        (["execution.wait_s=0"], r"execution.wait_s must be above 0 seconds, got 0"),
        (["execution.cpus_per_worker=-1"], r"execution.cpus_per_worker must be at least 0"),
        (["racing=halving", "asynchronous=true"], "racing Halving: asynchronous=true tells every"),
        (["asynchronous=true", "strategy=grid"], "true: GridSearch learns from whole gen"),
        (["asynchronous=true", "common_items=0.5"], "asynchronous=true: .* common_items=0.5"),
        (["asynchronous=1"], "asynchronous=1: expected true or false"),
    ],
)
def test_what_workers_cannot_do_is_refused(shell: Shell, options: list[str], pattern: str) -> None:
    quickstart = ["experiment=quickstart", "baselines=none", "tracker=none", "execution=ray"]
    shell.refuse(pattern, "search", *quickstart, *options)


def test_a_cluster_that_does_not_answer_is_named_at_once(opened: Opened) -> None:
    execution = on_ray.OnRay(address="127.0.0.1:1")
    own = local_evaluation(opened.ingredients, opened.space, None, None).pool
    with pytest.raises(UserError, match=r"execution.address=127.0.0.1:1: nothing answers there"):
        execution.pool(own, lambda: opened.order, opened.space.to_json)
    execution.close()


def test_where_candidates_are_scored_is_not_a_runs_identity() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        local, other, steady = (
            compose("search", overrides=[option])
            for option in ("execution=local", "execution=ray", "asynchronous=true")
        )
    assert identity_config(local) == identity_config(other)
    assert identity_config(local)["asynchronous"] is False
    assert identity_config(steady)["asynchronous"] is True
    assert OmegaConf.to_container(other.execution)["wait_s"] == 300  # type: ignore[index,call-overload]
