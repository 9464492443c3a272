"""The comparison with mergekit: skipped without it, and the same merge asked of both sides."""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from experiments.benchmarks import merge_speed, whole_commands


def test_skipped_with_a_reason_without_mergekit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(merge_speed.PYTHON, raising=False)
    rows = merge_speed.measure()
    assert len(rows) == len(merge_speed.COMPARISONS)
    assert {row.met for row in rows} == {None}
    assert {row.note for row in rows} == {
        "set EVOMERGE_MERGEKIT_PYTHON to a Python with mergekit 0.1.5"
    }


@pytest.mark.parametrize("comparison", merge_speed.COMPARISONS, ids=lambda each: each.theirs)
def test_candidates_are_new_and_near_what_mergekit_merges(
    comparison: merge_speed.MergeSpeed,
) -> None:
    experts = ("a", "b", "c")[: comparison.experts]
    plans = merge_speed.candidates(comparison.ours, experts)
    first, second = next(plans).coefficients["model"], next(plans).coefficients["model"]
    assert first != second
    request = merge_speed._request(comparison)
    assert len(request["inputs"]) - (request["base"] is not None) in (1, comparison.experts)
    for knob, values in request["each"].items():
        mine = first[knob]
        assert isinstance(mine, dict)
        assert list(mine.values()) == pytest.approx(values, rel=0.11)


def test_a_linear_merge_is_measured_by_the_files_that_it_names(tmp_path: Path) -> None:
    home = whole_commands.Home(tmp_path, count())
    for name in ("base", "expert0", "expert1", "expert2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    named = json.loads(home.file("linear").read_text())["models"]
    read = home.inputs(whole_commands._LINEAR)
    assert [str(path.parent) for path in read] == [model["model"] for model in named]
    assert len(home.inputs()) == 1 + len(read)


def test_a_search_that_fails_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [sys.executable, "-c", "raise SystemExit(2)"]
    monkeypatch.setattr(whole_commands.Home, "command", lambda self, *given: fails)
    with pytest.raises(CalledProcessError, match="status 2"):
        whole_commands._first_candidate(whole_commands.Home(tmp_path, count()))
