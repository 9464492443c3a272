"""Item response: dense references for estimate and error, and simulated candidates as truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merging.arrays import Matrix
from search.loop.history import Record
from search.racing.item_response import ItemModel, ItemResponse
from search.racing.racing import best_full

STRATA = [(60, 0.75), (40, 0.25)]
SHARES = np.concatenate([np.full(n, weight / n) for n, weight in STRATA])


class World:
    """Candidates of two abilities, and items that tell more or less of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.difficulty = self.rng.normal(size=100)
        self.loadings = self.rng.normal(size=(100, 2)) * self.rng.lognormal(-1, 1, size=(100, 1))
        self.noise = 0.05 + 0.3 * self.rng.random(100)

    def answers(self, count: int) -> Matrix:
        ability = self.rng.normal(size=(count, 2))
        noise = self.noise * self.rng.normal(size=(count, 100))
        return self.difficulty + ability @ self.loadings.T + noise


def records(cases: Matrix, first: int = 0, **more: Any) -> list[Record]:
    return [
        Record(first + i, None, {}, np.array([each @ SHARES]), cases=each, **more)
        for i, each in enumerate(cases)
    ]


def a_model(factors: int = 2) -> ItemModel:
    cases = World(0).answers(16)
    return ItemModel.fit(cases, cases @ SHARES + 0.5, STRATA, factors)


def doubt(model: ItemModel, chosen: list[int]) -> float:
    """Variance of the fitness given some items, from dense Gaussian conditioning."""
    covariance = model.loadings @ model.loadings.T + np.diag(model.noise)
    part = covariance[np.ix_(chosen, chosen)]
    told = covariance[:, chosen]
    left = covariance - told @ np.linalg.inv(part) @ told.T
    return float(model.shares @ left @ model.shares)


def test_estimate_and_error_are_those_of_the_conditional_normal() -> None:
    model = a_model()
    places = np.array([3, 17, 40, 77])
    own = World(1).answers(1)[0]
    covariance = model.loadings @ model.loadings.T + np.diag(model.noise)
    told = covariance[:, places] @ np.linalg.inv(covariance[np.ix_(places, places)])
    expected = model.means + told @ (own[places] - model.means[places])
    found = model.complete(places, own[places])
    assert found.cases == pytest.approx(expected)
    assert found.fitness == pytest.approx(float(expected @ SHARES) + 0.5)
    assert np.array_equal(found.cases[places], own[places])
    assert model.error(places) ** 2 == pytest.approx(doubt(model, places.tolist()))
    assert model.error(np.arange(100)) == 0


def test_items_are_chosen_one_by_one_for_the_least_doubt() -> None:
    model = a_model()
    chosen: list[int] = []
    for _ in range(4):
        rest = [i for i in range(100) if i not in chosen]
        chosen.append(min(rest, key=lambda i: doubt(model, [*chosen, i])))
    assert model.choose(4).tolist() == sorted(chosen)


def test_a_fit_finds_abilities_and_noise() -> None:
    world = World(2)
    cases = world.answers(400)
    model = ItemModel.fit(cases, cases @ SHARES, STRATA, 2)
    true, found = (
        each @ each.T for each in (world.loadings[:60], model.loadings[:60])
    )  # the first task: both have the same weights
    assert np.abs(found - true).max() < 0.2 * np.abs(true).max()
    assert np.corrcoef(model.noise[:60], world.noise[:60] ** 2)[0, 1] > 0.8


def test_the_stated_error_holds_and_estimates_have_no_bias() -> None:
    """Standard errors from twenty fitted candidates each, checked on candidates never seen."""
    found = []
    random = []
    for seed in range(12):
        world = World(seed)
        race: Any = ItemResponse(warm_up=1, factors=2).race(
            8, 1, records(world.answers(20)), STRATA, seed
        )
        places = race.stages[0]
        assert len(places) == 10
        others = np.sort(world.rng.choice(100, 10, replace=False))
        reference = best_full(records(world.answers(1)))
        assert reference is not None
        for own in world.answers(40):
            off = race.estimate(0, own[places], reference).fitness - own @ SHARES
            found.append(off / race.error)
            random.append((race.model.complete(others, own[others]).fitness - own @ SHARES, off))
    spread = np.array(found)
    assert np.mean(np.abs(spread) < 2) > 0.9
    assert 0.6 < np.sqrt(np.mean(spread**2)) < 1.25
    assert abs(spread.mean()) < 0.25  # the fits' own error is common to all of a world
    by_chance, chosen = np.sqrt(np.mean(np.square(random), axis=0))
    assert chosen < 0.8 * by_chance


class TestRace:
    def test_the_warm_up_is_asked_everything(self) -> None:
        rule, cases = ItemResponse(warm_up=2, factors=2), World(0).answers(12)
        assert len(rule.race(8, 1, records(cases), STRATA, 0).stages) == 1
        assert len(rule.race(8, 2, records(cases[:5]), STRATA, 0).stages) == 1
        assert len(rule.race(8, 2, records(cases), STRATA, 0).stages) == 2

    def test_items_stay_and_the_fit_learns(self) -> None:
        rule, world = ItemResponse(warm_up=1, factors=2), World(0)
        warm = records(world.answers(12))
        estimated = records(world.answers(3), 12, asked=10)
        later = [*warm, *estimated, *records(world.answers(4), 15)]
        first, second = (rule.race(8, 3, known, STRATA, 0) for known in (warm, later))
        assert np.array_equal(first.stages[0], second.stages[0])
        own = world.answers(1)[0][first.stages[0]]
        reference = best_full(warm)
        assert reference is not None
        estimates = [race.estimate(0, own, reference).fitness for race in (first, second)]
        assert estimates[0] != estimates[1]

    def test_only_who_may_be_better_than_the_best_is_asked_everything(self) -> None:
        world = World(0)
        known = records(world.answers(20))
        race = ItemResponse(warm_up=1, keep=0.25, factors=2).race(8, 1, known, STRATA, 0)
        places = race.stages[0]
        best = best_full(known)
        assert best is not None
        worse, good = best.cases - 0.5, best.cases + 0.5
        assert race.staying(0, dict.fromkeys(range(8), worse[places])) == []
        answers = {n: (good if n in (2, 5, 6) else worse)[places] for n in range(8)}
        assert race.staying(0, answers) == [2, 5]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"share": 0.0}, "racing.share must lie between 0 and 1, got 0.0"),
            ({"keep": 1.0}, "racing.keep must lie between 0 and 1, got 1.0"),
            ({"warm_up": 0}, "racing.warm_up must be at least 1, got 0"),
            ({"factors": 0}, "racing.factors must be at least 1, got 0"),
            ({"doubt": -1.0}, "racing.doubt must be a finite number of at least 0, got -1.0"),
        ],
    )
    def test_refusals(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ItemResponse(**options)
