"""The statistics of a comparison against scipy, closed forms and simulated truth."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import experiments.compare.significance
from experiments.compare.significance import GroupSample, difference, holm

DRAWS = 20_000


def sample(*gains: np.ndarray, weights=None, seeds=None) -> GroupSample:
    weights = tuple(weights or [1 / len(gains)] * len(gains))
    fitness = sum(w * g.mean(1) for w, g in zip(weights, gains, strict=True))
    seeds = tuple(range(len(fitness))) if seeds is None else seeds
    return GroupSample(seeds, fitness, gains, weights)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.2], [0.2]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # by hand
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.01, 0.01, 0.5], [0.03, 0.03, 0.5]),
    ],
)
def test_holm_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
def test_holm_is_the_step_down_of_bonferroni(p_values):
    n = len(p_values)
    order = np.argsort(p_values, kind="stable")
    steps = np.array(p_values)[order] * np.arange(n, 0, -1)
    naive = np.empty(n)
    naive[order] = np.minimum(1, np.maximum.accumulate(steps)) if n else steps
    assert holm(p_values) == pytest.approx(naive.tolist())
    assert all(c >= p for c, p in zip(holm(p_values), p_values, strict=True))


@pytest.mark.parametrize("seeds", [3, 5, 12])
def test_over_paired_seeds_alone_it_is_the_paired_t_test(seeds):
    rng = np.random.default_rng(seeds)
    one, other = rng.normal(0.3, 1, seeds), rng.normal(0, 1, seeds)
    names = tuple(range(seeds))
    first, second = (GroupSample(names, each, None, ()) for each in (one, other))
    found = difference(first, second, draws=100_000)
    known = stats.ttest_rel(one, other)
    interval = known.confidence_interval()
    width = interval.high - interval.low
    assert found.over == "seeds"
    assert found.paired_seeds
    assert found.effect == pytest.approx((one - other).mean())
    assert found.p == pytest.approx(known.pvalue, abs=0.01)
    assert found.low == pytest.approx(interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(interval.high, abs=0.03 * width)


def test_over_different_seeds_it_is_near_welchs_t_test():
    rng = np.random.default_rng(3)
    one, other = rng.normal(0.9, 0.5, 8), rng.normal(0, 1.5, 6)
    first = GroupSample(tuple(range(8)), one, None, ())
    second = GroupSample(tuple(range(6)), other, None, ())
    found = difference(first, second, draws=100_000)
    assert not found.paired_seeds
    assert found.p == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue, abs=0.02)


@pytest.mark.parametrize("count", [5, 10, 150])
def test_over_items_alone_it_is_the_paired_t_test_where_they_are_not_skewed(count):
    rng = np.random.default_rng(1)
    gap = rng.normal(0.3, 1, count)
    gap = 0.3 + np.concatenate([gap, -gap])  # symmetric
    hardness = rng.normal(0, 3, 2 * count)
    found = difference(sample((hardness + gap)[None]), sample(hardness[None]), draws=100_000)
    known = stats.ttest_1samp(gap, 0)
    interval = known.confidence_interval()
    width = interval.high - interval.low
    assert found.over == "items"
    assert found.p == pytest.approx(known.pvalue, abs=0.01)
    assert found.low == pytest.approx(interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(interval.high, abs=0.03 * width)


def test_skewness_moves_the_interval_as_studentised_resamples_do():
    """Their t has the same skewness; Student's interval lies elsewhere."""
    rng = np.random.default_rng(1)
    gap = rng.gamma(0.5, 1.0, 400)
    found = difference(sample(gap[None]), sample(np.zeros((1, 400))), draws=100_000)
    drawn = rng.choice(gap, (20_000, 400))
    t = (drawn.mean(1) - gap.mean()) / drawn.std(1, ddof=1)
    low, high = gap.mean() - np.quantile(t, [0.975, 0.025]) * gap.std(ddof=1)
    student = stats.ttest_1samp(gap, 0).confidence_interval()
    width = high - low
    assert student.high - student.low < width
    assert found.high == pytest.approx(high, abs=0.03 * width)
    assert found.high - student.high > 0.03 * width
    assert found.low == pytest.approx(student.low, abs=0.03 * width)  # never narrower
    assert found.low < low


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
def test_over_items_alone_p_is_that_of_a_permutation_test(shift):
    rng = np.random.default_rng(5)
    one = rng.normal(shift, 0.6, 120)
    other = rng.normal(0.0, 0.6, 120)
    found = difference(sample(one[None]), sample(other[None]))
    known = stats.permutation_test(
        (one, other),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=rng,
    )
    assert found.p == pytest.approx(known.pvalue, abs=0.03)


def test_items_are_drawn_within_tasks_and_tasks_weighted():
    """sd = sqrt(sum_t (w_t sd_t)^2 / n_t): a task's mean is never mixed with another's."""
    rng = np.random.default_rng(2)
    tasks = [rng.normal(5.0, 0.5, (1, 80)), rng.normal(-5.0, 2.0, (1, 40))]
    zeros = [np.zeros_like(task) for task in tasks]
    weights = (0.8, 0.2)
    found = difference(sample(*tasks, weights=weights), sample(*zeros, weights=weights))
    parts = zip(weights, tasks, strict=True)
    error = np.sqrt(sum((w * t.std()) ** 2 / t.shape[1] for w, t in parts))
    assert found.effect == pytest.approx(0.8 * tasks[0].mean() + 0.2 * tasks[1].mean())
    assert 1 < (found.high - found.low) / (2 * 1.96 * error) < 1.08


def test_equal_groups_differ_by_nothing():
    gains = np.random.default_rng(0).normal(size=(3, 20))
    found = difference(sample(gains), sample(gains.copy()))
    assert (found.effect, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_order_of_the_pair_only_turns_the_sign():
    rng = np.random.default_rng(4)
    one, other = sample(rng.normal(size=(5, 30))), sample(rng.normal(size=(5, 30)))
    there, back = difference(one, other), difference(other, one)
    assert there.effect == -back.effect
    assert there.p == pytest.approx(back.p, abs=0.02)
    assert there.low == pytest.approx(-back.high, abs=0.03)


def test_same_seed_same_numbers():
    rng = np.random.default_rng(4)
    one, other = sample(rng.normal(size=(5, 30))), sample(rng.normal(size=(5, 30)))
    assert difference(one, other) == difference(one, other)


def test_a_model_that_no_seed_has_touched_adds_no_spread():
    rng = np.random.default_rng(6)
    gains = rng.normal(0.5, 1.0, (5, 1)) + np.zeros((5, 30))
    fixed = GroupSample((), np.zeros(1), (np.zeros((1, 30)),), (1.0,))
    found = difference(sample(gains), fixed, draws=100_000)
    known = stats.ttest_1samp(gains[:, 0], 0.0)
    assert found.over == "items and seeds"
    assert found.p == pytest.approx(known.pvalue, abs=0.01)


@pytest.mark.parametrize(("items", "over"), [(True, "items"), (False, "nothing")])
def test_one_seed_is_said_to_be_one(items, over):
    rng = np.random.default_rng(6)
    one, five = sample(rng.normal(size=(1, 30))), sample(rng.normal(size=(5, 30)))
    if items:
        assert difference(one, five).over == over
    else:
        bare = [GroupSample(each.seeds, each.fitness, None, ()) for each in (one, five)]
        found = difference(*bare)
        assert found.over == over
        assert (found.low, found.high, found.p) == (None, None, None)


def test_other_items_are_refused():
    one, other = sample(np.zeros((2, 30))), sample(np.zeros((2, 31)))
    with pytest.raises(ValueError, match=r"\[30\] items per task and \[31\] are no pairs"):
        difference(one, other)


TRUTHS = {  # sd over seeds, over items, over both together, of the difference of two equal groups
    "items alone": (0.0, 1.0, 0.2),
    "seeds alone": (0.3, 0.0, 0.2),
    "chance in every cell": (0.0, 0.0, 1.0),
    "all three": (0.1, 0.6, 0.6),
}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("truth", TRUTHS)
def test_false_findings_are_as_rare_as_promised(truth, seeds):
    """Two groups of one kind: p < 0.05 in at most 5 of 100 (400 trials: 3 sd are 3.3 more)."""
    of_seeds, of_items, of_both = TRUTHS[truth]
    rng = np.random.default_rng([seeds, *map(ord, truth)])
    trials, count = 400, 50
    found = 0
    for trial in range(trials):
        gap = rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, of_items, count)
        gap = gap + rng.normal(0, of_both, (seeds, count))
        hardness = rng.normal(0, 2, count)  # shared by both groups: must not matter
        one, other = sample(hardness + gap / 2), sample(hardness - gap / 2)
        p = difference(one, other, draws=1000, seed=trial).p
        found += p is not None and p < 0.05
    assert found / trials < 0.083


FEW = {  # paired differences of equal models, their mean, and the rates at 10 and 20 items
    "normal": (lambda rng, n: rng.normal(size=n), 0.0, 0.06, 0.06),
    "right or wrong": (lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n), 0.0, 0.06, 0.06),
    "heavy tails": (lambda rng, n: rng.standard_t(3, n), 0.0, 0.06, 0.06),
    "log-normal": (lambda rng, n: rng.lognormal(size=n), np.exp(0.5), 0.1, 0.08),
}


@pytest.mark.parametrize("truth", FEW)
def test_few_items_count_as_few(truth):
    """Stated 5 %; 2000 trials: a standard error of 0.5 %."""
    draw, mean, *rates = FEW[truth]
    rng = np.random.default_rng(14)
    for count, rate in zip((10, 20), rates, strict=True):
        found, missed = 0, 0
        for trial in range(2000):
            gap = draw(rng, count)[None]
            one = difference(sample(gap), sample(gap * 0 + mean), draws=1000, seed=trial)
            found += one.p < 0.05
            missed += not one.low <= 0 <= one.high
        assert found / 2000 < rate + 0.01
        assert missed / 2000 < rate + 0.01


def test_few_items_cannot_prove_much():
    """Four gains of one sign happen by chance once in eight times, however alike they are."""
    gap = np.array([[1.0, 1.1, 0.9, 1.05]])
    assert difference(sample(gap), sample(0 * gap)).p == 1 / 8
    assert difference(sample(gap[:, :1]), sample(gap[:, 1:2])).over == "nothing"


def test_true_differences_are_found():
    rng = np.random.default_rng(0)
    found = 0
    for trial in range(100):
        gap = 0.5 + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 1.0, (5, 100))
        p = difference(sample(gap), sample(np.zeros((5, 100))), draws=1000, seed=trial).p
        found += p is not None and p < 0.05
    assert found > 90


def test_examples_run():
    assert doctest.testmod(experiments.compare.significance).failed == 0
