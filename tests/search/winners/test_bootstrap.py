"""Paired bootstrap: coverage where the truth is known, scipy's BCa, and its own invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from search.winners.bootstrap import paired_bootstrap


def zeros_like(cases):
    return [np.zeros_like(each) for each in cases]


@pytest.mark.parametrize(
    ("items", "draw", "mean"),
    [
        (20, lambda rng, n: rng.normal(0.3, 1.0, n), 0.3),
        (100, lambda rng, n: rng.exponential(1.0, n), 1.0),
        (60, lambda rng, n: rng.binomial(1, 0.6, n) - rng.binomial(1, 0.3, n) * 1.0, 0.3),
    ],
    ids=["normal", "skewed", "right or wrong"],
)
def test_interval_covers_the_truth_as_often_as_it_says(items, draw, mean):
    rng = np.random.default_rng(7)
    trials = 400
    hits, rejected = 0, 0
    for trial in range(trials):
        first = [draw(rng, items)]
        found = paired_bootstrap(
            first, zeros_like(first), weights=[1.0], resamples=800, seed=trial
        )
        hits += found.low <= mean <= found.high
        shifted = [first[0] - mean]
        rejected += (
            paired_bootstrap(
                shifted, zeros_like(first), weights=[1.0], resamples=800, seed=trial
            ).p
            < 0.05
        )
    assert 0.9 <= hits / trials <= 0.985  # 0.93 to 0.95 within three standard errors
    assert 0.015 <= rejected / trials <= 0.1


@pytest.mark.parametrize("seeds", [3, 5])
def test_interval_over_seeds_and_items_covers(seeds):
    rng = np.random.default_rng(3)
    items, trials, hits = 50, 300, 0
    for trial in range(trials):
        cases = (
            rng.normal(0, 0.5, (1, items))
            + rng.normal(0, 0.1, (seeds, 1))
            + rng.normal(0, 0.5, (seeds, items))
        )
        found = paired_bootstrap(
            [cases], [np.zeros_like(cases)], weights=[1.0], resamples=500, seed=trial
        )
        hits += found.low <= 0 <= found.high
    assert hits / trials >= 0.91


def test_equals_scipys_bca_of_the_mean():
    rng = np.random.default_rng(1)
    gaps = rng.gamma(2.0, 1.0, 500)
    found = paired_bootstrap([gaps], [np.zeros(500)], weights=[1.0], resamples=20_000)
    theirs = stats.bootstrap(
        (gaps,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_width_of_several_weighted_tasks_is_the_closed_form():
    """For normal items: 2 * 1.96 * sqrt(sum w^2 s^2 / n), tasks of different size and spread."""
    rng = np.random.default_rng(5)
    first = [rng.normal(0.2, 1.0, 300), rng.normal(0.0, 4.0, 150)]
    second = [rng.normal(0.0, 0.1, 300), rng.normal(0.0, 0.1, 150)]
    weights = [0.8, 0.2]
    found = paired_bootstrap(first, second, weights=weights, resamples=20_000)
    gaps = [one - other for one, other in zip(first, second, strict=True)]
    spread = math.sqrt(
        sum(w**2 * gap.var(ddof=1) / len(gap) for w, gap in zip(weights, gaps, strict=True))
    )
    assert found.difference == pytest.approx(
        sum(w * gap.mean() for w, gap in zip(weights, gaps, strict=True))
    )
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.05)
    z = found.difference / spread
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.03)
    assert (found.items, found.seeds) == (450, 1)


def test_pairing_removes_what_the_models_share():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10.0, 100)
    first, second = hard + rng.normal(0.1, 0.1, 100), hard + rng.normal(0.0, 0.1, 100)
    found = paired_bootstrap([first], [second], weights=[1.0], resamples=2000)
    assert found.low > 0
    assert found.p < 0.01


def test_shares_make_the_mean_a_ratio():
    """Equal to the ratio of sums; to copies of an item where shares are whole numbers."""
    gaps, shares = np.array([0.5, -0.2, 0.1, 0.4]), np.array([1.0, 2.0, 3.0, 1.0])
    found = paired_bootstrap([gaps], [np.zeros(4)], weights=[1.0], shares=[shares])
    assert found.difference == pytest.approx((gaps @ shares) / shares.sum())
    alike = paired_bootstrap([gaps], [np.zeros(4)], weights=[1.0], shares=[np.full(4, 7.0)])
    assert alike == paired_bootstrap([gaps], [np.zeros(4)], weights=[1.0])


def test_ratio_covers():
    rng = np.random.default_rng(11)
    hits, trials = 0, 300
    for trial in range(trials):
        shares = rng.integers(1, 20, 50).astype(np.float64)
        gaps = rng.normal(0.1 * shares / 10, 0.5)  # long items gain more
        truth = 0.1 * np.mean(np.arange(1, 20) ** 2) / 10 / 10
        found = paired_bootstrap(
            [gaps], [np.zeros(50)], weights=[1.0], shares=[shares], resamples=500, seed=trial
        )
        hits += found.low <= truth <= found.high
    assert 0.9 <= hits / trials <= 0.985


def test_same_seed_same_interval_and_sides_mirror():
    rng = np.random.default_rng(0)
    first, second = [rng.normal(0.1, 1, 40)], [rng.normal(0, 1, 40)]
    one = paired_bootstrap(first, second, weights=[1.0], resamples=500, seed=4)
    assert one == paired_bootstrap(first, second, weights=[1.0], resamples=500, seed=4)
    back = paired_bootstrap(second, first, weights=[1.0], resamples=500, seed=4)
    assert back.difference == pytest.approx(-one.difference)
    assert back.low == pytest.approx(-one.high)
    assert back.p == pytest.approx(one.p, rel=1e-6)


def test_p_and_interval_agree():
    """p < 0.05 exactly where the 95 % interval does not hold 0 (to the grain of resamples)."""
    rng = np.random.default_rng(9)
    for trial in range(60):
        gaps = rng.normal(0.25, 1.0, 50)
        found = paired_bootstrap([gaps], [np.zeros(50)], weights=[1.0], resamples=999, seed=trial)
        if abs(found.p - 0.05) > 0.01:
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0), trial


def test_models_that_are_equal_item_by_item():
    same = [np.array([1.0, 0.0, 1.0])]
    found = paired_bootstrap(same, same, weights=[1.0], resamples=50)
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_constant_gap_has_no_spread():
    gaps = [np.full(15, 0.5)]
    found = paired_bootstrap(gaps, zeros_like(gaps), weights=[1.0], resamples=99)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.p == pytest.approx(2 / 100)


def test_few_items_cannot_prove_much():
    """Four gains of one sign happen by chance once in eight times, however alike they are."""
    gaps = [np.array([1.0, 1.1, 0.9, 1.05])]
    assert paired_bootstrap(gaps, zeros_like(gaps), weights=[1.0]).p == 1 / 8


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ([], [], {"weights": []}, "one entry per task is needed"),
        ([np.ones(3)], [np.ones(3)], {"weights": [1.0, 1.0]}, "one entry per task is needed"),
        ([np.ones(3)], [np.ones(4)], {"weights": [1.0]}, "task 0: cases .* are no pairs"),
        ([np.ones(1)], [np.ones(1)], {"weights": [1.0]}, r"task 0 has 1 item\(s\)"),
        ([np.array([1, np.nan])], [np.ones(2)], {"weights": [1.0]}, "not finite"),
        (
            [np.ones(2)],
            [np.ones(2)],
            {"weights": [1.0], "shares": [np.zeros(2)]},
            "shares must be 2 numbers above 0",
        ),
        (
            [np.ones((2, 3)), np.ones((3, 3))],
            [np.ones((2, 3)), np.ones((3, 3))],
            {"weights": [1.0, 1.0]},
            "tasks have .* seeds",
        ),
        ([np.ones(2)], [np.ones(2)], {"weights": [1.0], "level": 1.0}, "level must lie"),
        ([np.ones(2)], [np.ones(2)], {"weights": [1.0], "resamples": 0}, "resamples must be"),
    ],
)
def test_what_cannot_be_resampled_is_refused(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second, **options)
