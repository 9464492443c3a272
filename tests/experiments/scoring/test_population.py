"""`together=`: the scores of each alone but for rounding, and the same bytes on resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluators import tries
from evaluators.engine.engine import Engine
from search.loop.evaluation import batches
from tests import builders
from tests.experiments.local import EXPERTS, overrides, write_texts
from tests.experiments.refusals import Shell

SPACES = {
    "mixtures": ["space=weights", "strategy=cma", "strategy.popsize=5"],
    "factors": ["space=factors", "strategy=mergevolve", "strategy.popsize=5", "noise.unit=one"],
    "noise": ["space=full_weights", "strategy=mergevolve", "strategy.popsize=5", "noise=low_rank"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("together")
    base = builders.llama(root / "base")
    for seed, name in enumerate(EXPERTS):
        builders.lora_adapter(root / f"base-{name}", base, rank=2, seed=seed)
    for i, split in enumerate(("search", "selection", "report")):
        write_texts(root / f"{split}.jsonl", first=100 * i)
    return root


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def go(world: Path, shell: Shell, run: Path, *more: str) -> list[dict[str, Any]]:
    common = ["in_hull=null", "baselines=none", "save_model=false", "budget.evaluations=9"]
    done = shell.run("search", *overrides(world, *common, *more, f"out={run}"))
    assert done.code == 0, done.stderr
    return lines(run)


@pytest.mark.parametrize("space", SPACES)
def test_scores_are_those_of_each_alone_and_a_resume_gives_the_same_bytes(
    world: Path, tmp_path: Path, shell: Shell, space: str
) -> None:
    alone = go(world, shell, tmp_path / "alone", *SPACES[space], "together=null")
    together = go(world, shell, tmp_path / "together", *SPACES[space], "together=4")
    first = [line["genome"] for line in alone[:5]]
    assert [line["genome"] for line in together[:5]] == first  # later ones are chosen by scores
    for one, other in zip(alone[:5], together[:5], strict=True):
        assert other["scores"] == pytest.approx(one["scores"], rel=1e-5)
    assert any(one["scores"] != two["scores"] for one, two in zip(together, alone, strict=True))
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "together", cut)
    for name in ("finalists.jsonl", "recipe.json", "report.html", "summary.json"):
        (cut / name).unlink(missing_ok=True)
    for name in ("history.jsonl", "cases.jsonl", "timing.jsonl"):  # inside the second unit
        kept = (cut / name).read_text().splitlines(keepends=True)[:6]
        (cut / name).write_text("".join(kept))
    go(world, shell, cut, *SPACES[space], "together=4")
    for name in ("history.jsonl", "cases.jsonl", "recipe.json"):
        assert (cut / name).read_bytes() == (tmp_path / "together" / name).read_bytes()


def test_a_group_that_fails_is_scored_one_by_one(
    world: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One candidate that is to blame costs the others nothing."""
    monkeypatch.setattr(tries, "PAUSES_S", (0.0,))
    alone = go(world, shell, tmp_path / "alone", *SPACES["mixtures"], "together=null")
    answer = Engine.run_population

    def full(engine: Engine, requests: Any, candidates: Any) -> Any:
        if len(candidates) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(engine, requests, candidates)

    monkeypatch.setattr(Engine, "run_population", full)
    together = go(world, shell, tmp_path / "together", *SPACES["mixtures"], "together=4")
    assert len(together) == len(alone)
    for one, other in zip(alone[:5], together[:5], strict=True):
        assert other["scores"] == pytest.approx(one["scores"], rel=1e-5)


def test_units_have_fixed_borders() -> None:
    for count in range(1, 12):
        for size in range(2, 6):
            whole = batches(count, size)
            assert np.concatenate([list(unit) for unit in whole]).tolist() == list(range(count))
            for first in range(count):
                rest = batches(count, size, first)
                assert rest == [unit for unit in whole if unit.stop > first]
