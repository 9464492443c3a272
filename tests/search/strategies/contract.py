"""What every strategy over vectors promises; a new strategy joins by one line in STRATEGIES."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merging.arrays import Vector
from merging.spaces.axes import Axis, Choice, Real, check, start
from search.ranking import dominates
from search.strategies.auto import Auto
from search.strategies.grid import GridSearch
from search.strategies.model_swarms import ModelSwarms
from search.strategies.nevergrad_optimizer import NevergradStrategy
from search.strategies.random_search import RandomSearch
from search.strategy import Candidate, Outcome, Strategy


@dataclass(frozen=True)
class Entry:
    """A strategy to be tested; `learns`: it must beat random search."""

    name: str
    build: Callable[..., Strategy[Vector]]
    learns: bool = True


STRATEGIES = [
    Entry("cma", partial(NevergradStrategy, optimizer="CMA")),
    Entry("diagonal cma", partial(NevergradStrategy, optimizer="DiagonalCMA", popsize=5)),
    Entry("de", partial(NevergradStrategy, optimizer="DE")),
    Entry("pso", partial(NevergradStrategy, optimizer="RealSpacePSO")),
    Entry("oneplusone", partial(NevergradStrategy, optimizer="OnePlusOne", popsize=1)),
    Entry("ngopt", partial(NevergradStrategy, optimizer="NGOpt", budget=150)),
    Entry("tbpsa", partial(NevergradStrategy, optimizer="TBPSA", include_start=False), False),
    Entry("auto", Auto),
    Entry("model swarms", ModelSwarms),
    Entry("random", RandomSearch, learns=False),
    Entry("grid", GridSearch, learns=False),
    Entry("coordinate grid", partial(GridSearch, mode="coordinate", levels=9), learns=False),
]

AXES: tuple[Axis, ...] = (
    Real("free"),
    Real("far", start=5.0, scale=2.0),
    Real("density", low=0.0, high=1.0, start=1.0, scale=0.2),
    Choice("method", ("linear", "ties", "dare"), start=1),
    Real("temperature", low=0.0, start=0.1),
    Real("capped", high=-1.0, start=-1.5),
)
GENERATIONS = 6


def fitness(genome: Vector) -> Vector:
    """A smooth optimum off the start, and one option that is best."""
    real = -((genome[0] - 0.4) ** 2) - (genome[1] - 6.0) ** 2 - (genome[2] - 0.6) ** 2
    return np.array([real - abs(genome[3] - 2.0) - genome[4] ** 2 - genome[5] ** 2])


def two_fitnesses(genome: Vector) -> Vector:
    return np.array([fitness(genome)[0], -(genome**2).sum()])


def outcomes(
    candidates: Sequence[Candidate[Vector]], score: Callable[[Vector], Vector | None] = fitness
) -> list[Outcome]:
    return [Outcome(candidate.id, score(candidate.genome)) for candidate in candidates]


def asked(
    strategy: Strategy[Vector],
    generations: int = GENERATIONS,
    score: Callable[[Vector], Vector | None] = fitness,
) -> list[list[float]]:
    """All genomes of some generations, in order."""
    genomes = []
    for _ in range(generations):
        candidates = strategy.ask()
        genomes += [[float(candidate.id), *candidate.genome.tolist()] for candidate in candidates]
        if candidates:
            strategy.tell(outcomes(candidates, score))
    return genomes


def asked_by_all() -> dict[str, Any]:
    return {entry.name: asked(entry.build(axes=AXES, seed=3)) for entry in STRATEGIES}


@pytest.fixture(scope="module")
def asked_elsewhere() -> dict[str, Any]:
    """What every strategy asks in another process with another hash seed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.strategies.contract"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class StrategyContract:
    """The promises; a test class inherits them and provides the fixture `entry`."""

    def test_ids_are_unique_and_count_from_zero(self, entry: Entry) -> None:
        ids = [row[0] for row in asked(entry.build(axes=AXES, seed=0))]
        assert ids == list(range(len(ids)))

    @pytest.mark.parametrize(
        "axes",
        [AXES, AXES[:1], AXES[3:4], (Real("fixed", 2.0, 2.0, start=2.0),)],
        ids=["mixed", "one real", "one choice", "one point"],
    )
    def test_genomes_lie_on_their_axes(self, entry: Entry, axes: tuple[Axis, ...]) -> None:
        strategy = entry.build(axes=axes, seed=1)
        for _ in range(GENERATIONS):
            candidates = strategy.ask()
            for candidate in candidates:
                check(axes, candidate.genome)
                assert candidate.genome.dtype == np.float64
            if candidates:
                strategy.tell(outcomes(candidates, lambda genome: -(genome**2).sum(keepdims=True)))

    def test_second_ask_is_refused(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=0)
        strategy.ask()
        with pytest.raises(RuntimeError, match=r"ask\(\) was called before candidates \[0.* told"):
            strategy.ask()

    def test_tell_without_ask_is_refused(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=0)
        with pytest.raises(RuntimeError, match=r"tell\(\) was called before ask\(\)"):
            strategy.tell([])

    def test_wrong_ids_are_refused_by_number_and_nothing_is_lost(self, entry: Entry) -> None:
        strategy, twin = entry.build(axes=AXES, seed=0), entry.build(axes=AXES, seed=0)
        told = outcomes(strategy.ask())
        with pytest.raises(ValueError, match=r"missing: \[0\]"):
            strategy.tell(told[1:])
        with pytest.raises(ValueError, match=r"told twice: \[0\]"):
            strategy.tell([*told, told[0]])
        with pytest.raises(ValueError, match=r"never asked: \[999\]"):
            strategy.tell([*told, Outcome(999, told[0].fitness)])
        strategy.tell(told)
        twin.tell(outcomes(twin.ask()))
        assert asked(strategy) == asked(twin)

    def test_fitness_must_be_finite(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=0)
        told = outcomes(strategy.ask(), lambda genome: np.array([np.nan]))
        with pytest.raises(ValueError, match=r"candidate 0 is .*nan.* told with fitness None"):
            strategy.tell(told)

    def test_order_of_tell_changes_nothing(self, entry: Entry) -> None:
        one, other = entry.build(axes=AXES, seed=2), entry.build(axes=AXES, seed=2)
        for _ in range(GENERATIONS):
            candidates, same = one.ask(), other.ask()
            _assert_equal(candidates, same)
            if candidates:
                one.tell(outcomes(candidates))
                other.tell(outcomes(candidates)[::-1])
        assert [g.tolist() for g in one.recommend()] == [g.tolist() for g in other.recommend()]

    def test_arguments_stay_unchanged_and_are_not_kept(self, entry: Entry) -> None:
        strategy, twin = entry.build(axes=AXES, seed=2), entry.build(axes=AXES, seed=2)
        for _ in range(3):
            candidates = strategy.ask()
            told = outcomes(candidates)
            before = [(outcome.id, outcome.fitness.tolist()) for outcome in told]  # type: ignore[union-attr]
            strategy.tell(told)
            assert before == [(o.id, o.fitness.tolist()) for o in told]  # type: ignore[union-attr]
            for candidate, outcome in zip(candidates, told, strict=True):
                candidate.genome[:] = 7.0
                outcome.fitness[:] = 7.0  # type: ignore[index]
            twin.tell(outcomes(twin.ask()))
            assert [g.tolist() for g in strategy.recommend()] == [
                g.tolist() for g in twin.recommend()
            ]
        _assert_equal(strategy.ask(), twin.ask())

    def test_failures_are_survived_and_never_recommended(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=4)
        failed: list[list[float]] = []
        for generation in range(GENERATIONS):
            candidates = strategy.ask()
            if not candidates:
                break
            told = outcomes(candidates)
            for i, candidate in enumerate(candidates):
                genome = candidate.genome.tolist()
                if generation == 0 or i % 2 == 0 or genome in failed:
                    told[i] = Outcome(candidate.id, None)
                    failed.append(genome)
            strategy.tell(told)
            assert all(genome.tolist() not in failed for genome in strategy.recommend())
            if generation == 0:
                assert strategy.recommend() == []

    def test_recommends_the_best_and_of_equals_the_first(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=5)
        assert strategy.recommend() == []
        seen: list[tuple[float, int, list[float]]] = []
        for _ in range(GENERATIONS):
            candidates = strategy.ask()
            if candidates:
                told = outcomes(candidates, lambda genome: np.floor(fitness(genome)))
                seen += [
                    (-float(o.fitness[0]), o.id, c.genome.tolist())  # type: ignore[index]
                    for c, o in zip(candidates, told, strict=True)
                ]
                strategy.tell(told)
        assert [genome.tolist() for genome in strategy.recommend()] == [min(seen)[2]]

    def test_several_objectives_recommend_the_non_dominated(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=5)
        seen: list[Vector] = []
        for generation in range(GENERATIONS):
            candidates = strategy.ask()
            told = outcomes(candidates, two_fitnesses)
            if generation % 2 and told:
                told[0] = Outcome(told[0].id, None)
            if candidates:
                strategy.tell(told)
            seen += [
                c.genome for c, o in zip(candidates, told, strict=True) if o.fitness is not None
            ]
        front = [
            genome.tolist()
            for genome in seen
            if not any(dominates(two_fitnesses(g), two_fitnesses(genome)) for g in seen)
        ]
        recommended = [genome.tolist() for genome in strategy.recommend()]
        assert sorted(recommended) == sorted(front)

    def test_number_of_objectives_must_not_change(self, entry: Entry) -> None:
        strategy = entry.build(axes=AXES, seed=5)
        strategy.tell(outcomes(strategy.ask(), two_fitnesses))
        with pytest.raises(ValueError, match=r"has shape \(1,\), not \(2,\)"):
            strategy.tell(outcomes(strategy.ask()))

    def test_same_seed_asks_the_same_also_in_another_process(
        self, entry: Entry, asked_elsewhere: dict[str, Any]
    ) -> None:
        assert asked(entry.build(axes=AXES, seed=3)) == asked_elsewhere[entry.name]

    def test_global_generator_is_neither_read_nor_moved(self, entry: Entry) -> None:
        np.random.seed(1)
        first = asked(entry.build(axes=AXES, seed=3))
        assert np.random.rand() == np.random.RandomState(1).rand()
        np.random.seed(2)
        assert asked(entry.build(axes=AXES, seed=3)) == first

    def test_a_replayed_strategy_goes_on_as_one_never_stopped(self, entry: Entry) -> None:
        whole, told = entry.build(axes=AXES, seed=6), list[list[Outcome]]()
        for _ in range(GENERATIONS):
            resumed = entry.build(axes=AXES, seed=6)
            for earlier in told:
                resumed.ask()
                resumed.tell(earlier)
            candidates = whole.ask()
            _assert_equal(candidates, resumed.ask())
            if not candidates:
                break
            told.append(outcomes(candidates))
            if len(candidates) > 1:
                told[-1][0] = Outcome(candidates[0].id, None)
            whole.tell(told[-1])
            resumed.tell(told[-1])
            assert [g.tolist() for g in resumed.recommend()] == [
                g.tolist() for g in whole.recommend()
            ]

    def test_beats_random_search_on_a_sphere(self, entry: Entry) -> None:
        if not entry.learns:
            pytest.skip("does not learn")
        axes = tuple(Real(f"w{i}") for i in range(6))

        def best(build: Callable[..., Strategy[Vector]], seed: int) -> float:
            strategy, spent, highest = build(axes=axes, seed=seed), 0, -np.inf
            while spent < 150:
                candidates = strategy.ask()
                told = outcomes(candidates, lambda g: -((g - 0.5) ** 2).sum(keepdims=True))
                strategy.tell(told)
                spent += len(candidates)
                highest = max(highest, *(float(o.fitness[0]) for o in told))  # type: ignore[index]
            return highest

        ours = np.median([best(entry.build, seed) for seed in range(3)])
        random = np.median([best(RandomSearch, seed) for seed in range(3)])
        assert ours > random / 2, f"{entry.name} {ours}, random search {random}"


def _assert_equal(first: Sequence[Candidate[Vector]], second: Sequence[Candidate[Vector]]) -> None:
    assert [c.id for c in first] == [c.id for c in second]
    assert [c.genome.tobytes() for c in first] == [c.genome.tobytes() for c in second]


def start_of(axes: tuple[Axis, ...]) -> list[float]:
    values: list[float] = start(axes).tolist()
    return values


if __name__ == "__main__":
    print(json.dumps(asked_by_all()))
