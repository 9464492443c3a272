"""Intervals against scipy, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluators.memorization.intervals import auc_interval, mean_interval, share_interval


def test_mean_is_students() -> None:
    cases = np.array([1.0, 2.0, 4.0, 4.5])
    expected = stats.t.interval(0.95, 3, cases.mean(), stats.sem(cases))
    assert mean_interval(cases) == pytest.approx(expected)
    assert mean_interval(cases[:1]) is None


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 10), (10, 10), (1, 1)])
def test_share_is_clopper_and_pearsons(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    assert share_interval(hits, count) == pytest.approx((expected.low, expected.high))


def test_auc_at_the_ends_has_a_width() -> None:
    low, high = auc_interval(1.0, 20, 20)
    assert high == 1.0
    assert 0.8 < low < 0.95
    assert auc_interval(0.0, 20, 20) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_auc_is_held_in_95_of_100(shift: float) -> None:
    draw, held, runs = np.random.default_rng(4), 0, 600
    truth = float(stats.norm.cdf(shift / np.sqrt(2)))
    for _ in range(runs):
        members, others = draw.normal(shift, 1, 20), draw.normal(0, 1, 30)
        auc = float((members[:, None] > others).mean())
        low, high = auc_interval(auc, 20, 30)
        assert low <= auc <= high
        held += low <= truth <= high
    assert 0.93 < held / runs <= 1.0
