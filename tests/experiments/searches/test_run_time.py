"""The time that `check` states is that of the run: on an engine whose every request takes long."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from evaluators.engine.engine import Engine
from evaluators.requests import Request
from evaluators.split import Split
from experiments.searches import paces, run, run_time
from experiments.searches.paces import CandidatePace, Paces
from experiments.searches.run_time import run_times
from tests.experiments.local import overrides, write_texts
from tests.experiments.refusals import Shell

REQUEST_S = 0.005
PASS_S = 0.03


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass has its own cost beside that of its requests, so that few at a time are slower."""
    real = Engine.run_population

    def run_population(
        self: Engine, requests: Sequence[Request], candidates: Sequence[Any]
    ) -> list[Any]:
        time.sleep(PASS_S + REQUEST_S * len(requests) * len(candidates))
        return real(self, requests, candidates)

    monkeypatch.setattr(Engine, "run_population", run_population)


def stated(text: str) -> dict[str, float]:
    """Returns the seconds of the whole run and of its steps, as `check` prints them."""
    units = {"s": 1.0, "min": 60.0}
    whole = re.search(r"^time +about ([\d.]+) (s|min) for the whole run", text, re.M)
    steps = re.findall(r"^ {12} *([\d.]+) (s|min)  (\w+)", text, re.M)
    assert whole is not None, text
    found = {name: float(number) * units[unit] for number, unit, name in steps}
    return {**found, "whole": float(whole[1]) * units[whole[2]]}


@pytest.mark.usefixtures("slow")
def test_check_states_the_time_of_the_whole_run(
    shell: Shell, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = write_texts(tmp_path / "report.jsonl", first=300, count=20)
    line = overrides(world, f"report_on.text.data={report}", "strategy=random", "out=run")
    line += ["report_on.text.window=32", "finalists=3"]
    checked = shell.run("check", *line)
    assert checked.code == 0, checked.stderr
    began = []

    def time_lines(*given: Any) -> list[str]:
        lines = run_time.time_lines(*given)
        began.append(time.perf_counter())
        return lines

    monkeypatch.setattr(run, "time_lines", time_lines)
    ended = shell.run("search", *line)
    run_s = time.perf_counter() - began[0]
    assert ended.code == 0, ended.stderr
    found = stated(checked.stdout)
    assert 1 / 1.5 < found["whole"] / run_s < 1.5, checked.stdout
    assert stated(ended.stdout).keys() == found.keys()
    timing = (shell.cwd / "run" / "timing.jsonl").read_text().splitlines()
    search_s = sum(json.loads(each)["seconds"] for each in timing)
    assert 1 / 1.5 < found["search"] / search_s < 1.5, checked.stdout
    assert sum(found.values()) - found["whole"] == pytest.approx(found["whole"], rel=0.1)


def test_steps_count_what_a_run_does() -> None:
    config = OmegaConf.create(
        {
            "budget": {"evaluations": 60, "seconds": None},
            "common_items": None,
            "choose": "second_look",
            "finalists": 5,
            "save_model": True,
            "adapter_rank": None,
        }
    )
    pace = CandidatePace(merge=1.0, scored=11.0)
    ask: dict[Split, float] = {"search": 10.0, "selection": 5.0, "report": 100.0}
    paces = Paces(4, 2.0, [3.0] * 10, [], pace, pace, ask)

    def times(
        held_out: int | None, parallel: int = 1, privacy: Any = None, **options: Any
    ) -> list[float]:
        execution = SimpleNamespace(parallel=parallel)
        parts: Any = SimpleNamespace(privacy=privacy, held_out=held_out, execution=execution)
        return list(run_times(OmegaConf.merge(config, options), parts, paces).values())

    references = 4 * 12 + 10 * 13  # base and three experts, static merges
    held_out = 4 * 102 + 3 * 103 + 2 * 101  # of the static merges three; both winners
    assert times(3)[:5] == pytest.approx([references, 660, 660, 11 * 6, held_out])
    assert times(3)[4] == pytest.approx(times(None)[4] - 7 * 103)
    assert times(3, privacy=SimpleNamespace())[3] == times(None)[4]
    assert times(3, parallel=4)[:3] == pytest.approx([references, 165, 165])
    assert times(3, budget={"seconds": 110})[1:3] == pytest.approx([110, 110])
    assert times(3, common_items=0.5)[2] == pytest.approx(10 * 11)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 2), (0.12, 1)])
def test_only_what_is_short_is_tried_twice(seconds: float, times: int) -> None:
    tried: list[float] = []

    def work() -> None:
        tried.append(seconds)
        time.sleep(seconds)

    assert seconds <= paces._pace(work) < seconds + 10
    assert len(tried) == times
