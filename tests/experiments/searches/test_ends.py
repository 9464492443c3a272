"""A search that is done ends with winner and report; what a message advises keeps the run."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators import tries
from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, Response
from experiments.reports import report
from experiments.searches import certificate
from experiments.searches.tracking import NoTracker
from merging.saving import shards
from tests import builders
from tests.experiments.local import EXPERTS, overrides, write_texts
from tests.experiments.refusals import Shell

SHORT = ("baselines=none", "in_hull=null", "strategy=random", "out=run", "budget.evaluations=3")


class Offended(NoTracker):
    """A tracker that fails when all is done."""

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        raise OSError("the server has forgotten this run")


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A base with LoRA experts, whose merges an adapter can hold, and texts."""
    root = tmp_path / "adapters"
    base = builders.llama(root / "base")
    for seed, name in enumerate(EXPERTS):
        builders.lora_adapter(root / f"base-{name}", base, rank=2, seed=seed)
    for i, split in enumerate(("search", "selection", "report")):
        write_texts(root / f"{split}.jsonl", first=100 * i)
    return root


def test_what_fails_after_the_search_is_a_sentence(
    shell: Shell, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(certificate, "measure", full)
    nothing = ("space.bounds={weight: [-1e-30, 1e-30]}", "space.start={weight: 0}")
    tracker = f"tracker._target_={__name__}.Offended"
    line = overrides(adapters, *SHORT, *nothing, tracker, "adapter_rank=4", "save_model=false")
    offended = shell.run("search", *line)
    assert "the server has forgotten this run (run directory run)" in offended.stderr
    ended = shell.run("search", *line)
    assert ended.code == 0, ended.stderr
    assert "search: " not in ended.stderr, "it was done"
    summary = json.loads(Path("run/summary.json").read_text())
    (note,) = summary["notes"]
    assert note.startswith("no adapter was written: the merged model changes no matrix of the ba")
    assert f"note: {note}" in ended.stdout
    assert note[3:] in Path("run/report.html").read_text()
    assert "CUDA out of memory" in summary["certificate"]["sentences"][0]


def test_remedies_go_on_with_the_same_run(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "PAUSES_S", (0.0,))
    line = overrides(world, *SHORT)
    stopped = shell.run("search", *line, "timeout_s=1e-9", "out=slow")
    assert stopped.code == 2
    wanted = "the limit is 1e-09 s: raise timeout_s, which makes it another run"
    assert wanted in stopped.messages[-1]
    with monkeypatch.context() as disk:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        disk.setattr(shards, "_write_shard", lambda *_, **__: (_ for _ in ()).throw(full))
        stopped = shell.run("search", *line)
    assert stopped.code == 2
    assert "No space left on device" in stopped.messages[-1]
    assert "also with save_model=false adapter_rank=null" in stopped.messages[-1]
    history = Path("run/history.jsonl").read_bytes()
    assert not Path("run/summary.json").exists()
    less = ("save_model=false", "adapter_rank=null", "stream=true")
    Path("run/report.html").write_text("of a run that is not finished")
    with monkeypatch.context() as disk:
        disk.setattr(report, "write_report", lambda _: (_ for _ in ()).throw(full))
        assert shell.run("search", *line, *less).code == 2
    assert Path("run/summary.json").exists()
    assert not Path("run/report.html").exists(), "it would mark the run as finished"
    assert shell.run("search", *line, *less).code == 0
    assert Path("run/history.jsonl").read_bytes() == history
    other = shell.run("search", *line, "timeout_s=1000")  # its candidates may have other scores
    assert "timeout_s: None there, 1000 now; choose another out=" in other.messages[-1]
    shown = shell.run("search", *line)
    assert shown.code == 0
    assert "evomerge rebuild run/recipe.json --out DIR writes it" in shown.stdout


@pytest.mark.parametrize("broken", ["selection", "report"])
def test_items_on_which_nobody_can_be_scored_cost_their_scores_alone(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def scores(panel: Panel, responses: Sequence[Response]) -> dict[str, Score]:
        if panel.split == broken:
            raise EvaluationError("bits_per_byte is nan, no finite score")
        return whole(panel, responses)

    whole = Panel.scores
    monkeypatch.setattr(Panel, "scores", scores)
    line = overrides(world, *SHORT, "objective=worst", "objective.normalize=spread")
    ended = shell.run("search", *line, "save_model=false")
    assert ended.code == 0, ended.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    assert Path("run/report.html").exists()
    evolved = summary["models"][-1]
    if broken == "report":
        assert evolved["report"]["failure"] == "bits_per_byte is nan, no finite score"
        assert summary["optimism"] is None
    else:
        assert summary["notes"][0].startswith("all finalists failed on the selection items, so th")
        assert summary["fitness"] == evolved["search"]["fitness"][0]
