"""One process in a run's directory, whatever its file system can."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import platform
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from experiments.runs import directory
from experiments.runs.directory import RunLocked, check_ingredients, locked, run_identity
from experiments.runs.errors import UserError


@pytest.fixture(params=[None, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """File systems with locks, and without: the error that they raise then."""
    if request.param is not None:

        def refuse(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


def test_a_second_start_is_refused_and_leaves_nothing(tmp_path: Path, locks: int | None) -> None:
    run = tmp_path / "runs" / "one"
    for _ in range(2):
        with locked(run):
            refused = pytest.raises(
                RunLocked, match=r"runs/one: .*at work on this run: wait for it"
            )
            with refused, locked(run):
                pytest.fail("two processes share a run")
            assert run.is_dir()
        assert not (tmp_path / "runs").exists()


def test_what_was_made_stays(tmp_path: Path, locks: int | None) -> None:
    (tmp_path / "own").mkdir()
    with locked(tmp_path / "own"):
        pass
    assert (tmp_path / "own").is_dir()
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").touch()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "run.lock"}


def _die_at_work(run: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    fcntl.flock = refuse  # type: ignore[assignment]
    with locked(run):
        os._exit(9)


def test_without_locks_a_dead_process_does_not_keep_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = multiprocessing.get_context("spawn").Process(target=_die_at_work, args=(tmp_path,))
    dead.start()
    dead.join()
    assert (tmp_path / "run.owner").read_text() == f"process {dead.pid} on {platform.node()}"
    monkeypatch.setattr(fcntl, "flock", _no_flock)
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "run.owner").read_text()
    assert not (tmp_path / "run.owner").exists()
    (tmp_path / "run.owner").write_text("process 1 on another-machine")
    refused = pytest.raises(RunLocked, match=r"1 on another-machine is at .* gone, remove /")
    with refused, locked(tmp_path):
        pytest.fail("a process of another machine may live")


def test_without_locks_one_of_two_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start takes the run over just after this one has read that its owner is gone."""
    with subprocess.Popen(["true"]) as dead:
        pass
    (tmp_path / "run.owner").write_text(f"process {dead.pid} on {platform.node()}")
    is_gone, others = directory._is_gone, ExitStack()

    def judge(owner: str) -> bool:
        monkeypatch.setattr(directory, "_is_gone", is_gone)
        gone = is_gone(owner)
        others.enter_context(locked(tmp_path))
        return gone

    monkeypatch.setattr(fcntl, "flock", _no_flock)
    monkeypatch.setattr(directory, "_is_gone", judge)
    with others:
        with pytest.raises(RunLocked, match="at work"), locked(tmp_path):
            pytest.fail("two processes share a run")
        assert f"process {os.getpid()} on" in (tmp_path / "run.owner").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"run.lock"}


def _no_flock(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_ingredients_are_compared_kind_by_kind(tmp_path: Path) -> None:
    check_ingredients(tmp_path, {"base": "b", "items": {"search": {"text.a": "1"}}})
    check_ingredients(tmp_path, {"start": {"plan": 1}})
    check_ingredients(tmp_path, {"base": "b", "items": {"search": {"text.a": "1"}}})
    with pytest.raises(UserError, match=r"begun with another start\.plan: what lies there now"):
        check_ingredients(tmp_path, {"start": {"plan": 2}})
    with pytest.raises(UserError, match=r"another set of search items for task 'text\.a': what"):
        check_ingredients(tmp_path, {"base": "b", "items": {"search": {"text.a": "2"}}})
    with pytest.raises(UserError, match=r"another set of private items: what"):
        check_ingredients(tmp_path, {"items": {"search": {"text.a": "1"}, "private": 0.5}})


def test_where_a_cache_lies_is_not_a_runs_identity() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        here, there = (
            compose("search", ["experiment=quickstart", f"cache={name}"]) for name in "ab"
        )
    assert run_identity(here) == run_identity(there)
