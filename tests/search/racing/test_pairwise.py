"""The paired sequential test: its stated error rate where the truth is known, and its power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from merging.arrays import Matrix, Vector
from search.loop.history import Record
from search.racing.pairwise import PairedTest, upper_limits
from search.racing.racing import ItemSample
from search.racing.size_classes import SizeClasses
from search.winners.shrinkage import Strata

STRATA = [(40, 0.6), (20, 0.4)]
ONE = [(60, 1.0)]
LOOKS = (0.2, 0.4, 0.6)


def shares(strata: Strata) -> Vector:
    return np.concatenate([np.full(n, weight / n) for n, weight in strata])


def normal(rng: np.random.Generator, count: int) -> Matrix:
    return 2 * rng.normal(size=60) + rng.normal(size=(count, 60))


def heavy(rng: np.random.Generator, count: int) -> Matrix:
    return 2 * rng.normal(size=60) + rng.standard_t(3, size=(count, 60))


def skewed(rng: np.random.Generator, count: int) -> Matrix:
    return -rng.lognormal(size=(count, 60))


def right_or_wrong(rng: np.random.Generator, count: int) -> Matrix:
    difficulty = 1.5 * rng.normal(size=60)
    return (difficulty + rng.normal(size=(count, 60)) > 0).astype(np.float64)


def mostly_wrong(rng: np.random.Generator, count: int) -> Matrix:
    difficulty = rng.normal(size=60) - 2
    return (difficulty + 0.5 * rng.normal(size=(count, 60)) > 0).astype(np.float64)


def full(cases: Vector, strata: Strata) -> list[Record]:
    return [Record(0, None, {}, np.array([cases @ shares(strata)]), cases=cases)]


def survivors(
    rule: PairedTest, cases: Matrix, strata: Strata, records: list[Record], seed: int
) -> tuple[list[int], int]:
    """Returns who is asked all items, and how many items were asked."""
    race = rule.race(len(cases), seed, records, strata, seed=0)
    staying, asked = list(range(len(cases))), 0
    for stage, places in enumerate(race.stages[:-1]):
        left = race.staying(stage, {n: cases[n][places] for n in staying})
        asked += (len(staying) - len(left)) * len(places)
        staying = left
    return staying, asked + len(staying) * cases.shape[1]


@pytest.mark.parametrize("make", [normal, heavy, skewed, right_or_wrong, mostly_wrong])
@pytest.mark.parametrize(
    ("strata", "count", "before"), [(ONE, 2, False), (STRATA, 1, True), (STRATA, 4, True)]
)
def test_the_best_is_dropped_no_more_often_than_stated(
    make: Callable[[np.random.Generator, int], Matrix], strata: Strata, count: int, before: bool
) -> None:
    """Candidates are equally good but for chance: nothing is harder to keep apart."""
    rng, alpha, races, lost = np.random.default_rng(count), 0.2, 80, 0
    rule = PairedTest(alpha=alpha, looks=LOOKS)
    for seed in range(races):
        cases = make(rng, count + before)
        records = full(cases[-1], strata) if before else []
        fitness = cases @ shares(strata)
        best = int(np.argmax(fitness[:count]))
        staying, _ = survivors(rule, cases[:count], strata, records, seed)
        better = not before or fitness[best] >= fitness[-1]
        lost += better and best not in staying
    assert stats.binomtest(lost, races, alpha, alternative="greater").pvalue > 0.001
    assert lost <= alpha * races  # it is conservative: looks and rivals are correlated


def test_one_comparison_has_the_level_that_it_is_given() -> None:
    """Student's limit on normal differences of a large set of items: exact."""
    rng = np.random.default_rng(0)
    strata = [(100_000, 1.0)]
    sample = ItemSample(np.arange(8), strata)
    limits = upper_limits(rng.normal(size=(20_000, 8)), sample, 0.05, [None])
    assert np.mean(limits < 0) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 20_000))


def test_limits_agree_with_scipys_and_with_finite_populations() -> None:
    apart = np.random.default_rng(1).normal(size=(3, 12))
    many = ItemSample(np.arange(12), [(10**12, 1.0)])
    expected = stats.ttest_1samp(apart, 0, axis=1).confidence_interval(0.98).high
    assert upper_limits(apart, many, 0.01, [None]) == pytest.approx(expected)
    everything = ItemSample(np.arange(12), [(12, 1.0)])
    assert upper_limits(apart, everything, 0.01, [None]) == pytest.approx(apart.mean(axis=1))
    half = upper_limits(apart, ItemSample(np.arange(12), [(24, 1.0)]), 0.01, [None])
    assert (half - apart.mean(axis=1)) == pytest.approx(
        (expected - apart.mean(axis=1)) * np.sqrt(0.5)
    )


def test_two_tasks_have_the_degrees_of_freedom_of_welch() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=5), 3 * rng.normal(size=9)
    big = 10**9
    sample = ItemSample(
        np.concatenate([np.arange(5), big + np.arange(9)]), [(big, 0.5), (big, 0.5)]
    )
    found = upper_limits(np.concatenate([first, second])[None], sample, 0.05, [None, None])
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.9)
    assert 2 * found[0] == pytest.approx(welch.high)


def test_who_is_clearly_worse_costs_only_the_first_look() -> None:
    rng = np.random.default_rng(3)
    cases = normal(rng, 6)
    cases[1:] -= 5.0
    staying, asked = survivors(PairedTest(looks=LOOKS), cases, STRATA, [], 0)
    assert staying == [0]
    assert asked == 60 + 5 * 12
    cases[0] -= 5.0
    best = full(normal(rng, 1)[0], STRATA)
    assert survivors(PairedTest(looks=LOOKS), cases, STRATA, best, 0) == ([], 6 * 12)
    alone = PairedTest(looks=LOOKS, against_best=False)
    assert len(survivors(alone, cases, STRATA, best, 0)[0]) >= 1


def test_tolerance_drops_who_cannot_be_much_better_than_the_best_so_far() -> None:
    rng = np.random.default_rng(4)
    best = normal(rng, 1)[0]
    cases = best + 0.001 * rng.normal(size=(3, 60)) + 0.002
    strict, loose = PairedTest(looks=LOOKS), PairedTest(looks=LOOKS, tolerance=0.1)
    assert len(survivors(strict, cases, STRATA, full(best, STRATA), 0)[0]) >= 1
    assert survivors(loose, cases, STRATA, full(best, STRATA), 0)[0] == []


def test_four_wrong_answers_by_luck_drop_nobody() -> None:
    """Equal answers have no variance; that says nothing of the items that were not asked."""
    places = SizeClasses.of([(100, 1.0)], None).prefixes((0.04,), 1, 0)[0]
    best = np.zeros(100)
    best[places[:3]] = 1.0
    race = PairedTest(looks=(0.04,)).race(1, 0, full(best, [(100, 1.0)]), [(100, 1.0)], 0)
    answers = {0: np.zeros(4)}
    assert race.staying(0, answers) == [0]
    again = PairedTest(looks=(0.04,)).race(2, 0, [], [(100, 1.0)], 0)
    assert again.staying(0, {0: np.zeros(4), 1: np.zeros(4)}) == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "racing.alpha must lie between 0 and 1, got 0.0"),
        ({"alpha": 1.0}, "racing.alpha must lie between 0 and 1, got 1.0"),
        ({"looks": ()}, "racing.looks is empty: give at least one share"),
        ({"tolerance": -0.1}, "racing.tolerance must be a finite number of at least 0, got -0.1"),
        (
            {"tolerance": float("nan")},
            "racing.tolerance must be a finite number of at least 0, got nan",
        ),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairedTest(**options)
