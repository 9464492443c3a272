"""The comparison with mergekit: skipped without it, and the same merge asked of both sides."""

from __future__ import annotations

import pytest

from experiments.benchmarks import merge_speed


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
