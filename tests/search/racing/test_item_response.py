"""Item response: dense references for estimate and error, and simulated candidates as truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from merging.arrays import Matrix, Vector
from search.loop.history import Record
from search.racing.item_model import ItemModel
from search.racing.item_response import ItemResponse
from search.racing.racing import Full, best_full

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
    return ItemModel.fit(cases, STRATA, factors)


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
    assert found.fitness == pytest.approx(float(expected @ SHARES))
    moved = model.moved(places, 0.25).complete(places, own[places])
    assert moved.fitness == pytest.approx(found.fitness + 0.25)
    assert moved.fitness == pytest.approx(float(moved.cases @ SHARES))
    assert np.array_equal(moved.cases[places], own[places])
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
    model = ItemModel.fit(cases, STRATA, 2)
    true, found = (
        each @ each.T for each in (world.loadings[:60], model.loadings[:60])
    )  # the first task: both have the same weights
    assert np.abs(found - true).max() < 0.2 * np.abs(true).max()
    assert np.corrcoef(model.noise[:60], world.noise[:60] ** 2)[0, 1] > 0.8


def test_telling_items_tell_more_than_random_ones() -> None:
    off = []
    for seed in range(6):
        world = World(seed)
        race: Any = ItemResponse(warm_up=1, factors=2).race(
            8, 1, records(world.answers(20)), STRATA, seed
        )
        places = race.stages[0]
        assert len(places) == 10
        others = np.sort(world.rng.choice(100, 10, replace=False))
        for own in world.answers(40):
            found = [race.model.complete(p, own[p]).fitness for p in (places, others)]
            off.append(np.array(found) - own @ SHARES)
    chosen, by_chance = np.sqrt(np.mean(np.square(off), axis=0))
    assert chosen < 0.8 * by_chance


class Search:
    """A search by generations whose candidates' true fitness is known.

    Args:
        spread: standard deviation of candidates' abilities.
        gain: of every generation on the one before, in the first ability.
    """

    def __init__(self, seed: int, kind: str, spread: float, gain: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind, self.spread, self.gain = kind, spread, gain
        self.loadings = np.abs(self.rng.normal(1, 0.5, (300, 3))) * (1, 0.5, 0.5)
        self.loadings[:, 1:] *= self.rng.choice([-1, 1], (300, 2))
        self.difficulty = self.rng.normal(0, 1.5, 300)
        self.z: list[float] = []
        self.improving = self.dropped = 0
        self.expected = 0.0
        self.run()

    def answers(self, generation: int) -> Matrix:
        ability = self.spread * self.rng.normal(size=(12, 3))
        ability[:, 0] += self.gain * generation
        z: Matrix = ability @ self.loadings.T - self.difficulty
        if self.kind == "right or wrong":
            return (z + self.rng.logistic(size=z.shape) > 0).astype(np.float64)
        return z + (0.3 + self.rng.random(300)) * self.rng.normal(size=z.shape)

    def run(self) -> None:
        known: list[Record] = []
        for generation in range(7):
            cases = self.answers(generation)
            race: Any = ItemResponse().race(12, generation, known, [(300, 1.0)], 0)
            asked, staying = race.stages[0], list(range(12))
            told = [Full(float(row.mean()), row) for row in cases]
            if len(race.stages) > 1:
                staying = race.staying(0, {i: row[asked] for i, row in enumerate(cases)})
                guesses = [race.estimate(0, row[asked], told[0]) for row in cases]
                self.judge(race, cases.mean(axis=1), guesses, staying, best_full(known))
                told = [told[i] if i in staying else guesses[i] for i in range(12)]
            for i, full in enumerate(told):
                few = {} if i in staying else {"asked": len(asked)}
                fitness = np.array([full.fitness])
                known.append(Record(len(known), None, {}, fitness, cases=full.cases, **few))

    def judge(
        self, race: Any, truth: Vector, guesses: list[Full], staying: list[int], best: Any
    ) -> None:
        """Counts what is off, and who is dropped beside who would be with errors as stated."""
        self.z += [(g.fitness - t) / race.error for g, t in zip(guesses, truth, strict=True)]
        first = int(np.argmax(truth))
        if truth[first] > best.fitness:
            self.improving += 1
            self.dropped += first not in staying
            drawn = truth + race.error * self.rng.normal(size=(200, 12))
            above = (drawn > drawn[:, [first]]).sum(axis=1)
            kept = (above < race.most) & ((drawn[:, first] >= race.least) | (above == 0))
            self.expected += 1 - kept.mean()


@pytest.mark.parametrize("kind", ["right or wrong", "any number"])
@pytest.mark.parametrize(("spread", "gain"), [(1.0, 0.0), (1.0, 0.3), (0.3, 0.1), (0.3, 0.3)])
def test_the_stated_error_holds(kind: str, spread: float, gain: float) -> None:
    """Also where candidates get better by a third of their spread, or all of it, each time."""
    searches = [Search(seed, kind, spread, gain) for seed in range(5)]
    z = np.concatenate([search.z for search in searches])
    assert 0.8 < np.sqrt(np.mean(z**2)) < 1.25
    assert np.mean(np.abs(z) < 2) > 0.9
    improving = sum(search.improving for search in searches)
    dropped = sum(search.dropped for search in searches)
    expected = sum(search.expected for search in searches)
    assert dropped <= expected + 1.5 * np.sqrt(improving)  # three standard deviations at most
    assert improving >= 10 or gain == 0


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
        assert race.staying(0, dict.fromkeys(range(8), worse[places])) == [0]  # it is looked at
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
