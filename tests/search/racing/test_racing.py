"""Successive halving and the difference estimate: stages, survivors, and no bias."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from merging.arrays import Vector
from search.loop.history import Record
from search.racing.racing import (
    Full,
    Halving,
    ItemSample,
    Places,
    best_full,
    weighed_prefixes,
)
from search.racing.size_classes import SizeClasses
from search.winners.shrinkage import Strata

STRATA = [(40, 0.75), (10, 0.25)]


def prefixes(strata: Strata, shares: tuple[float, ...], least: int, seed: int) -> list[Places]:
    return SizeClasses.of(strata, None).prefixes(shares, least, seed)


def test_documents_of_like_length_are_a_class() -> None:
    sizes = np.array([1.0, 900, 460, 220, 120, 2, 3, 500, 100, 3, 1, 1, *[50] * 12])
    tasks = [(24, 0.5), (10, 0.5)]
    found = SizeClasses.of(tasks, np.concatenate([sizes, np.full(10, 7.0)]))
    longest, second = (sizes[found.labels[:24] == k].tolist() for k in range(2))
    assert (longest, second) == ([900, 460, 500], [220, 120])
    largest = [sizes[found.labels[:24] == k].max() for k in range(found.labels[:24].max() + 1)]
    assert (found.labels[24:] == found.labels[:24].max() + 1).all()  # one class: all are alike
    assert largest == sorted(largest, reverse=True)
    assert sum(weight for _, weight in found.strata) == pytest.approx(1)
    assert sum(n for n, _ in found.strata) == 34
    assert sum(found.amounts) == pytest.approx(34)
    cases = np.random.default_rng(0).normal(size=(1, 34))
    everything = ItemSample(np.arange(34), found.strata, found.labels)
    plain = ItemSample(np.arange(34), tasks)
    assert everything.means(cases) == pytest.approx(plain.means(cases))
    stage = found.prefixes((0.1,), 4, 0)[0]
    for part, asked, items, _ in ItemSample(stage, found.strata, found.labels).parts():
        assert len(part) == asked >= min(4, items)


SHARES = np.concatenate([np.full(n, weight / n) for n, weight in STRATA])


def record(number: int, cases: Vector | None, fitness: float | None = None, **more: Any) -> Record:
    if fitness is None and cases is not None:
        fitness = float(cases @ SHARES)
    return Record(
        number, None, {}, None if fitness is None else np.array([fitness]), cases=cases, **more
    )


class TestPrefixes:
    def test_grow_within_every_task_and_end_with_all_items(self) -> None:
        stages = prefixes(STRATA, (0.1, 0.5), least=2, seed=3)
        assert [len(stage) for stage in stages] == [4 + 2, 20 + 5, 50]
        assert [int((stage < 40).sum()) for stage in stages] == [4, 20, 40]
        for small, large in pairwise(stages):
            assert set(small) < set(large)
        assert all((np.diff(stage) > 0).all() for stage in stages)

    def test_depend_on_the_seed_alone(self) -> None:
        one, same, other = (prefixes(STRATA, (0.1,), 1, seed)[0] for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_tasks_of_few_items_make_fewer_stages(self) -> None:
        assert [len(stage) for stage in prefixes([(3, 1.0)], (0.1, 0.2, 0.5), 4, 0)] == [3]

    def test_every_generation_has_its_own_order(self) -> None:
        first, same, next_one = (
            Halving().race(8, generation, [], STRATA, seed=0).stages[0] for generation in (0, 0, 1)
        )
        assert np.array_equal(first, same)
        assert not np.array_equal(first, next_one)


class TestWeighedPrefixes:
    def test_tasks_have_what_their_weights_are_worth(self) -> None:
        strata = [(40, 4 / 13), (40, 4 / 13), (40, 4 / 13), (90, 1 / 13)]
        stages = weighed_prefixes(strata, (0.0123, 0.037, 0.111, 0.333), 1, seed=3)
        counts = [[asked for _, asked, _, _ in ItemSample(s, strata).parts()] for s in stages]
        assert counts == [
            [1, 1, 1, 0],
            [2, 2, 2, 0],
            [7, 7, 7, 1],
            [21, 21, 21, 5],
            [40] * 3 + [90],
        ]
        for small, large in pairwise(stages):
            assert set(small) < set(large)
        assert all((np.diff(stage) > 0).all() for stage in stages)

    def test_tasks_that_count_alike_have_equal_numbers_while_they_last(self) -> None:
        strata = [(10, 0.5), (1000, 0.5)]
        stages = weighed_prefixes(strata, (0.01, 0.1), 1, seed=0)
        assert [int((stage < 10).sum()) for stage in stages] == [5, 10, 10]
        assert [len(stage) for stage in stages] == [10, 60, 1010]

    def test_many_tasks_have_one_item_each_at_least(self) -> None:
        strata = [(5, 1 / 40)] * 40
        (first, second) = weighed_prefixes(strata, (0.01, 0.02), 1, seed=0)
        assert (len(first), len(second)) == (40, 200)  # both rungs are the same

    def test_depend_on_the_seed_alone_and_begin_like_the_other_prefixes(self) -> None:
        one, same, other = (weighed_prefixes(STRATA, (0.2,), 1, seed)[0] for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert set(one) <= set(prefixes(STRATA, (0.25,), 1, 1)[0])

    def test_a_task_that_counts_little_does_not_hide_what_the_others_say(self) -> None:
        """What the estimate leaves out costs less than the chance of a few items would."""
        strata, rng = [(40, 0.9), (80, 0.1)], np.random.default_rng(0)
        true = np.linspace(-0.3, 0.3, 8)
        found: dict[str, list[bool]] = {"weighed": [], "alike": []}
        for seed in range(200):
            cases = true[:, None] + np.concatenate(
                [0.3 * rng.normal(size=(8, 40)), 5.0 * rng.normal(size=(8, 80))], axis=1
            )
            for name, places in (
                ("weighed", weighed_prefixes(strata, (0.05,), 1, seed)[0]),
                ("alike", prefixes(strata, (0.05,), 1, seed)[0]),
            ):
                assert len(places) <= 6
                means = ItemSample(places, strata).means(cases[:, places])
                found[name].append(int(np.argmax(means)) >= 6)
        assert np.mean(found["weighed"]) > np.mean(found["alike"]) + 0.1


class TestHalving:
    def test_keeps_the_best_one_in_eta(self) -> None:
        race = Halving(eta=4, rungs=(0.1, 0.5)).race(8, 0, [], STRATA, 0)
        cases = {n: np.full(4, float(n % 5)) for n in range(8)}
        assert race.staying(0, cases) == [3, 4]
        assert race.staying(0, {7: cases[7]}) == [7]

    def test_the_best_so_far_takes_a_place(self) -> None:
        best = record(0, np.full(50, 3.5))
        cases = {n: np.full(4, float(n % 5)) for n in range(8)}
        race = Halving(eta=4, rungs=(0.1, 0.5)).race(8, 1, [best], STRATA, 0)
        assert race.staying(0, cases) == [3, 4]  # 9 competitors: 4, best so far, 3
        assert race.staying(0, {n: cases[n] for n in range(4)}) == [3]
        assert race.staying(0, {3: cases[3]}) == []
        alone = Halving(against_best=False, rungs=(0.1, 0.5)).race(8, 1, [best], STRATA, 0)
        assert alone.staying(0, {3: cases[3]}) == [3]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"eta": 1.0}, "racing.eta must be above 1, got 1.0"),
            ({"rungs": ()}, "racing.rungs is empty"),
            ({"rungs": (0.5, 0.25)}, r"racing.rungs must ascend between 0 and 1, got \[0.5, 0.25"),
            ({"rungs": (0.5, 1.0)}, "racing.rungs must ascend between 0 and 1"),
            ({"least": 0}, "racing.least must be at least 1, got 0"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Halving(**options)


def test_the_best_so_far_was_asked_all_items() -> None:
    cases = np.zeros(50)
    records = [
        record(0, None),
        record(1, cases, 0.5),
        record(2, cases, 0.9, asked=10),
        record(3, cases + 1, 0.6),
        record(4, cases, 0.6),
    ]
    best = best_full(records)
    assert best is not None
    assert best.fitness == 0.6
    assert best.cases[0] == 1
    assert best_full(records[:1]) is None


class TestEstimate:
    def test_is_exact_where_the_tasks_differ_by_constants(self) -> None:
        reference = np.random.default_rng(0).normal(size=50)
        own = reference + np.repeat([0.3, -0.2], [40, 10])
        places = prefixes(STRATA, (0.1,), 2, 0)[0]
        sample = ItemSample(places, STRATA)
        found = sample.difference_estimate(own[places], Full(7.0, reference))
        assert found.fitness == pytest.approx(7.0 + 0.75 * 0.3 - 0.25 * 0.2)
        assert found.cases == pytest.approx(own)

    def test_cases_that_were_asked_stay_and_their_mean_is_the_fitness(self) -> None:
        rng = np.random.default_rng(1)
        reference, own = rng.normal(size=(2, 50))
        places = prefixes(STRATA, (0.25,), 2, 0)[0]
        full = Full(float(reference @ SHARES), reference.copy())
        found = ItemSample(places, STRATA).difference_estimate(own[places], full)
        assert np.array_equal(found.cases[places], own[places])
        assert found.fitness == pytest.approx(float(found.cases @ SHARES))
        assert np.array_equal(full.cases, reference)

    def test_has_no_bias_over_random_orders(self) -> None:
        rng = np.random.default_rng(2)
        reference, own = rng.lognormal(size=(2, 50))
        full = Full(float(reference @ SHARES), reference)
        found = []
        for seed in range(600):
            places = prefixes(STRATA, (0.1,), 2, seed)[0]
            found.append(ItemSample(places, STRATA).difference_estimate(own[places], full).fitness)
        error = float(np.std(found)) / np.sqrt(len(found))
        assert abs(np.mean(found) - own @ SHARES) < 4 * error
        assert error < 0.05
