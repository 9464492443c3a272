"""Faults that pass, and files that change: a run ends as if nothing had been, or says what is."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from evaluators.engine.engine import Engine
from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, Response
from experiments.runs.directory import locked
from experiments.runs.model_scores import ModelScores
from experiments.searches import run as search_run
from experiments.suites.shared_references import share
from search.loop import jsonl
from tests.experiments.commands.test_beyond_hull import KEPT
from tests.experiments.local import make_world, overrides, write_texts
from tests.experiments.refusals import Shell

QUICK = ("baselines=few", "budget.evaluations=6", "finalists=2", "save_model=false", "threads=1")
READ = ("summary.json", "in_hull/history.jsonl", *KEPT)
OWN = re.compile(rb'"(\w*seconds|run|peak_memory_bytes)": [^,}\n]*')  # a start's own


class Faults:
    """Lets the engine fail, for reasons outside of any model, where `fails` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.fails = 0, lambda call: False
        answer = Engine.run_population
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

        def faulty(engine: Engine, *arguments: Any) -> Any:
            self.calls += 1
            if self.fails(self.calls):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            return answer(engine, *arguments)

        monkeypatch.setattr(Engine, "run_population", faulty)


def content(run: Path, *names: str) -> dict[str, bytes]:
    return {name: OWN.sub(b"", (run / name).read_bytes()) for name in names or READ}


@pytest.mark.parametrize(
    "ways",
    [
        pytest.param([], id="alone"),
        pytest.param(
            ["racing=halving", "space=weights", "strategy.popsize=3"],
            id="raced",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["space=full_weights", "strategy=mergevolve", "noise=low_rank", "together=2"],
            id="together",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["asynchronous=true", "strategy=crossover", "strategy.popsize=3"],
            id="steady",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_faults_that_pass_change_nothing(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch, ways: list[str]
) -> None:
    """Single ones in one start; then ones that last until the start ends, at growing moments."""
    faults = Faults(monkeypatch)
    line = ["search", *overrides(world, *QUICK, *ways)]
    assert shell.run(*line, "out=whole").code == 0
    calls, whole = faults.calls, content(shell.cwd / "whole")

    chance = random.Random(20261130)
    single = set(chance.sample(range(1, calls), calls // 5))
    faults.calls, faults.fails = 0, single.__contains__
    ended = shell.run(*line, "out=single")
    assert ended.code == 0, ended.stderr
    assert content(shell.cwd / "single") == whole

    for moment in sorted(chance.sample(range(1, calls), 5)):
        faults.calls = 0
        faults.fails = lambda call, last=moment: call > last  # type: ignore[misc]
        ended = shell.run(*line, "out=stopped")
        if ended.code == 0:  # little was left to be asked
            break
        assert ended.code == 2
        assert re.match("evomerge search: .*out of memory.*run dir", ended.messages[-1])
        assert "Traceback" not in ended.stderr
    faults.fails = lambda call: False
    ended = shell.run(*line, "out=stopped")
    assert ended.code == 0, ended.stderr
    assert content(shell.cwd / "stopped") == whole


def test_an_expert_that_cannot_be_scored_ends_the_run_before_the_search(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    make_world(own)
    _break(own / "base-prose")
    line = ["search", *overrides(own, *QUICK), "in_hull=null", "out=run"]
    ended = shell.run(*line)
    assert ended.code == 2
    assert re.search(r"expert 'prose' cannot be scored on the search .* leave it", ended.stderr)
    assert not (shell.cwd / "run" / "history.jsonl").exists()


def test_base_and_experts_that_failed_on_search_items_are_asked_again(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file says that they failed, as those of earlier versions do."""
    line = ["search", *overrides(world, *QUICK), "in_hull=null"]
    assert shell.run(*line, "out=whole").code == 0
    calls = iter(range(100))
    scores = Panel.scores

    def odd(panel: Panel, responses: Sequence[Response]) -> dict[str, Score]:
        if next(calls) == 1:  # the first expert
            raise EvaluationError("bits_per_byte is nan, no finite score")
        return scores(panel, responses)

    with monkeypatch.context() as patch:
        patch.setattr(Panel, "scores", odd)
        assert shell.run(*line, "out=run").code == 2
    written = shell.cwd / "run" / "references.jsonl"
    assert [entry["name"] for entry in jsonl.read(written)] == ["base"]
    failed = ModelScores("code", "expert", "search", {}, "bits_per_byte is nan")
    jsonl.append(written, {"id": 1, **failed.to_json()})
    ended = shell.run(*line, "out=run")
    assert ended.code == 0, ended.stderr
    assert content(shell.cwd / "run", "summary.json") == content(
        shell.cwd / "whole", "summary.json"
    )
    assert [entry["id"] for entry in jsonl.read(written)] == list(range(len(jsonl.read(written))))


def _break(model: Path) -> None:
    """Makes a model's weights finite, and its logits not."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("split", "change"),
    [
        ("search", lambda path: write_texts(path, first=900)),
        ("selection", lambda path: path.write_text(path.read_text().replace("brown", "white"))),
        ("report", lambda path: path.write_text(path.read_text().rpartition("{")[0])),
    ],
)
def test_a_run_does_not_go_on_with_other_items(
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
    change: Callable[[Path], object],
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    make_world(own)
    line = ["search", *overrides(own, *QUICK), "out=run", "in_hull=null"]
    with monkeypatch.context() as patch:
        patch.setattr(search_run, "run_loop", _interrupt)
        assert shell.run(*line).code == 130
    shutil.copy(own / f"{split}.jsonl", own / "before.jsonl")
    change(own / f"{split}.jsonl")
    before = _files(shell.cwd)
    ended = shell.run(*line)
    assert ended.code == 2
    wanted = rf"begun with another set of {split} items for task 'text': .* put the old"
    assert re.search(wanted, ended.messages[-1])
    assert _files(shell.cwd) == before
    shutil.move(own / "before.jsonl", own / f"{split}.jsonl")
    assert shell.run(*line).code == 0


def test_runs_share_scores_of_the_same_items_alone(shell: Shell, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    make_world(own)
    line = ["search", *overrides(own, *QUICK), "in_hull=null"]
    assert shell.run(*line, "out=first").code == 0
    again = {"seed": 1, "space": {"seed": 1}}
    config = OmegaConf.merge(OmegaConf.load(shell.cwd / "first" / "config.yaml"), again)
    assert isinstance(config, DictConfig)
    write_texts(own / "report.jsonl", first=900)
    assert share(shell.cwd / "first", shell.cwd / "second", config)
    ended = shell.run(*line, "seed=1", "out=second")
    assert ended.code == 2
    assert re.search("begun with another set of report items", ended.messages[-1])


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_second_start_is_refused_before_anything_is_opened(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        pytest.fail("a second start opened what the first one works with")

    monkeypatch.setattr(search_run, "dry_run", forbidden)
    line = ["search", *overrides(world, "out=run")]
    with locked(shell.cwd / "run"):  # the first start has not written anything yet
        ended = shell.run(*line)
    assert ended.code == 2
    assert ended.messages == [
        "evomerge search: run: another process is at work on this run: wait for it or stop it"
    ]
