"""Intervals against scipy, and how often they hold the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluators.intervals import auc_interval, mean_interval, share_interval
from evaluators.memorization.exposure import chance_exposure

Scores: TypeAlias = Callable[[np.random.Generator, tuple[int, int]], tuple[np.ndarray, float]]


def test_mean_of_symmetric_items_is_students() -> None:
    cases = np.array([1.0, 2.0, 4.0, 5.0])
    expected = stats.t.interval(0.95, 3, cases.mean(), stats.sem(cases))
    assert mean_interval(cases, -math.inf) == pytest.approx(expected)
    assert mean_interval(cases, 2.0, 3.5) == (2.0, 3.5)
    assert mean_interval(cases[:1], 0.0, 9.0) is None


def test_mean_of_equal_items_has_a_width() -> None:
    assert mean_interval(np.full(20, 1.0), 0.0, 1.0) == pytest.approx(share_interval(20, 20))
    low, high = mean_interval(np.full(20, 0.5), 0.0, 1.0) or (0.5, 0.5)
    assert low < 0.5 < high
    assert mean_interval(np.full(20, 1.0), 0.0) is None


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), min_size=2, max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_mean_is_known_exactly(items: list[float]) -> None:
    cases = np.array(items)
    low, high = mean_interval(cases, 0.0, 1.0) or (0.0, 0.0)
    assert 0 <= low <= cases.mean() + 1e-9
    assert cases.mean() - 1e-9 <= high <= 1
    assert low < high


CANDIDATES = 101


def exposures(draw: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Exposures of values that the model knows nothing of, and their mean."""
    ranks = draw.integers(1, CANDIDATES + 1, shape)
    return math.log2(CANDIDATES) - np.log2(ranks), chance_exposure(CANDIDATES)


def areas(draw: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Canary AUC of the same."""
    return draw.integers(0, CANDIDATES, shape) / (CANDIDATES - 1), 0.5


def remembered(draw: np.random.Generator, shape: tuple[int, int]) -> tuple[np.ndarray, float]:
    """One in ten values is remembered to the letter."""
    found, chance = exposures(draw, shape)
    most = math.log2(CANDIDATES)
    return np.where(draw.random(shape) < 0.1, most, found), 0.1 * most + 0.9 * chance


@pytest.mark.parametrize(("scores", "most"), [(exposures, 6.7), (areas, 1.0), (remembered, 6.7)])
def test_mean_of_twenty_canaries_is_held_in_95_of_100(scores: Scores, most: float) -> None:
    cases, truth = scores(np.random.default_rng(7), (12000, 20))
    ends = np.array([mean_interval(row, 0.0, most) for row in cases])
    held = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
    assert abs(held - 0.95) < 0.01 + 2 * math.sqrt(0.95 * 0.05 / len(cases))


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
