"""What every strategy over lineages promises; a new one joins by one line in STRATEGIES."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merging.arrays import Vector
from merging.lineages.lineage import Founder, Lineage, ancestry
from search.populations.archives import CycleQD, MapElites
from search.populations.fronts import Fronts
from search.populations.niches import Niches
from search.populations.population import Truncation
from search.populations.variation import Variation
from search.ranking import dominates
from search.strategies.crossover import GeneticAlgorithm
from search.strategy import Outcome
from tests.search.strategies.lineages import Problem, Scored, best, evolve, outcomes, written

PROBLEM = Problem()
GENERATIONS = 6


@dataclass(frozen=True)
class Entry:
    """A strategy to be tested, and the objectives it can have."""

    name: str
    build: Callable[..., GeneticAlgorithm]
    one: bool = True
    several: bool = True

    @property
    def score(self) -> Scored:
        return PROBLEM.one if self.one else PROBLEM.several


SEGMENTS = Variation(
    uniform=0, one_point=0, two_point=0, layer_points=0, per_tensor=0, slerp=0, arithmetic=0
)
ARCHIVE = {"cells": 4, "low": -0.3, "high": 0.0}
STRATEGIES = [
    Entry("crossover", partial(GeneticAlgorithm, popsize=10), several=False),
    Entry("m2n2", partial(GeneticAlgorithm, popsize=6, population=Niches(8), variation=SEGMENTS)),
    Entry("nsga2", partial(GeneticAlgorithm, popsize=10, population=Fronts(10))),
    Entry(
        "map elites",
        partial(GeneticAlgorithm, popsize=8, population=MapElites(**ARCHIVE)),
        one=False,
    ),  # type: ignore[arg-type]
    Entry(
        "cycle qd", partial(GeneticAlgorithm, popsize=8, population=CycleQD(**ARCHIVE)), one=False
    ),  # type: ignore[arg-type]
]


def asked(strategy: GeneticAlgorithm, score: Scored, generations: int = GENERATIONS) -> list[Any]:
    """All genomes of some generations, in order."""
    rows = []
    for _ in range(generations):
        candidates = strategy.ask()
        rows += [[candidate.id, written(candidate.genome)] for candidate in candidates]
        strategy.tell(outcomes(candidates, score))
    return rows


def asked_by_all() -> dict[str, Any]:
    return {
        entry.name: asked(entry.build(seed=3, founders=PROBLEM.names), entry.score)
        for entry in STRATEGIES
    }


@pytest.fixture(scope="module")
def asked_elsewhere() -> dict[str, Any]:
    """What every strategy asks in another process with another hash seed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.strategies.lineage_contract"],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def failing(score: Scored) -> Scored:
    """Fails for about a third of all genomes, always for the same."""

    def scored(lineage: Lineage) -> tuple[Vector, Vector] | None:
        return None if sum(map(ord, written(lineage))) % 3 == 0 else score(lineage)

    return scored


def recommended(strategy: GeneticAlgorithm) -> list[str]:
    return [written(lineage) for lineage in strategy.recommend()]


class LineageContract:
    """The promises; a test class inherits them and provides the fixture `entry`."""

    @pytest.fixture
    def build(self, entry: Entry) -> Callable[[int], GeneticAlgorithm]:
        return lambda seed: entry.build(seed=seed, founders=PROBLEM.names)

    def test_ids_count_from_zero_and_the_founders_come_first(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        first = build(0).ask()
        assert [c.genome for c in first[:3]] == [Founder(name) for name in PROBLEM.names]
        rows = asked(build(0), entry.score)
        assert [row[0] for row in rows] == list(range(len(rows)))

    def test_genomes_decode_to_finite_numbers(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy = build(1)
        for _ in range(GENERATIONS):
            candidates = strategy.ask()
            assert all(np.isfinite(PROBLEM.items(c.genome)).all() for c in candidates)
            strategy.tell(outcomes(candidates, entry.score))

    def test_second_ask_and_tell_without_ask_are_refused(
        self, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy = build(0)
        with pytest.raises(RuntimeError, match=r"tell\(\) was called before ask\(\)"):
            strategy.tell([])
        strategy.ask()
        with pytest.raises(RuntimeError, match=r"ask\(\) was called before candidates \[0.* told"):
            strategy.ask()

    def test_wrong_ids_are_refused_by_number_and_nothing_is_lost(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy, twin = build(0), build(0)
        told = outcomes(strategy.ask(), entry.score)
        with pytest.raises(ValueError, match=r"missing: \[0\]"):
            strategy.tell(told[1:])
        with pytest.raises(ValueError, match=r"told twice: \[0\]"):
            strategy.tell([*told, told[0]])
        with pytest.raises(ValueError, match=r"never asked: \[999\]"):
            strategy.tell([*told, Outcome(999, told[0].fitness, told[0].cases)])
        strategy.tell(told)
        twin.tell(outcomes(twin.ask(), entry.score))
        assert asked(strategy, entry.score) == asked(twin, entry.score)

    def test_fitness_must_be_finite(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy = build(0)
        told = outcomes(strategy.ask(), entry.score)
        told[2] = Outcome(2, np.full_like(told[2].fitness, np.nan), told[2].cases)
        with pytest.raises(ValueError, match=r"candidate 2 is .*nan.* told with fitness None"):
            strategy.tell(told)

    def test_order_of_tell_changes_nothing(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        one, other = build(2), build(2)
        for generation in range(GENERATIONS):
            told = outcomes(one.ask(), failing(entry.score))
            assert len(other.ask()) == len(told)
            one.tell(told)
            other.tell([told[i] for i in np.random.default_rng(generation).permutation(len(told))])
            assert recommended(one) == recommended(other)
        assert asked(one, entry.score) == asked(other, entry.score)

    def test_outcomes_stay_unchanged_and_are_not_kept(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy, twin = build(2), build(2)
        for _ in range(3):
            told = outcomes(strategy.ask(), entry.score)
            before = [(o.fitness.tolist(), o.cases.tolist()) for o in told]  # type: ignore[union-attr]
            strategy.tell(told)
            assert before == [(o.fitness.tolist(), o.cases.tolist()) for o in told]  # type: ignore[union-attr]
            for outcome in told:
                outcome.fitness[:] = outcome.cases[:] = 7.0  # type: ignore[index]
            twin.tell(outcomes(twin.ask(), entry.score))
        assert asked(strategy, entry.score) == asked(twin, entry.score)

    def test_failures_never_become_parents_and_are_never_recommended(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy, failed = build(4), set[Lineage]()
        for generation in range(GENERATIONS):
            candidates = strategy.ask()
            assert not failed & {p for c in candidates for p in ancestry(c.genome)[:-1]}
            told = outcomes(candidates, entry.score)
            for i, candidate in enumerate(candidates):
                if (generation == 0 and i > 1) or (generation > 0 and i % 2 == 0):
                    told[i] = Outcome(candidate.id, None)
                    failed.add(candidate.genome)
            strategy.tell(told)
            assert not failed & set(strategy.recommend())

    def test_a_search_goes_on_where_nobody_succeeds(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy = build(4)
        for _ in range(3):
            candidates = strategy.ask()
            assert candidates
            strategy.tell([Outcome(candidate.id, None) for candidate in candidates])
            assert strategy.recommend() == []
        assert asked(strategy, entry.score, 2)
        assert strategy.recommend()

    def test_recommends_the_best_and_of_equals_the_first(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        if not entry.one:
            pytest.skip("has several objectives")
        strategy, seen = build(5), list[tuple[float, int, str]]()
        assert strategy.recommend() == []
        for _ in range(GENERATIONS):
            candidates = strategy.ask()
            told = outcomes(candidates, entry.score)
            told = [Outcome(o.id, np.floor(4 * o.fitness), o.cases) for o in told]  # type: ignore[operator]
            seen += [
                (-float(o.fitness[0]), o.id, written(c.genome))  # type: ignore[index]
                for c, o in zip(candidates, told, strict=True)
            ]
            strategy.tell(told)
        assert recommended(strategy) == [min(seen)[2]]

    def test_several_objectives_recommend_the_non_dominated(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        if not entry.several:
            pytest.skip("has one objective")
        strategy, seen = build(5), list[tuple[Vector, str]]()
        for _ in range(GENERATIONS):
            candidates = strategy.ask()
            told = outcomes(candidates, failing(PROBLEM.several))
            strategy.tell(told)
            seen += [
                (o.fitness, written(c.genome))
                for c, o in zip(candidates, told, strict=True)
                if o.fitness is not None
            ]
        front = [text for one, text in seen if not any(dominates(other, one) for other, _ in seen)]
        assert sorted(recommended(strategy)) == sorted(front)

    def test_objectives_that_do_not_fit_are_refused(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        strategy = build(5)
        if not entry.several:
            match, wrong = "Truncation ranks by one number, the objective has 3", PROBLEM.several
        elif not entry.one:
            match, wrong = (
                "a number for each of at least two tasks, the objective has 1:",
                PROBLEM.one,
            )
        else:
            strategy.tell(outcomes(strategy.ask(), PROBLEM.several))
            match, wrong = r"has shape \(1,\), not \(3,\)", PROBLEM.one
        candidates = strategy.ask()
        with pytest.raises(ValueError, match=match):
            strategy.tell(outcomes(candidates, wrong))
        strategy.tell([Outcome(c.id, None) for c in candidates])  # nothing is lost

    def test_same_seed_asks_the_same_also_in_another_process(
        self,
        entry: Entry,
        build: Callable[[int], GeneticAlgorithm],
        asked_elsewhere: dict[str, Any],
    ) -> None:
        rows = asked(build(3), entry.score)
        assert rows == asked_elsewhere[entry.name]
        assert rows != asked(build(4), entry.score)

    def test_global_generator_is_neither_read_nor_moved(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        np.random.seed(1)
        first = asked(build(3), entry.score)
        assert np.random.rand() == np.random.RandomState(1).rand()
        assert asked(build(3), entry.score) == first

    def test_a_replayed_strategy_goes_on_as_one_never_stopped(
        self, entry: Entry, build: Callable[[int], GeneticAlgorithm]
    ) -> None:
        whole, told = build(6), list[list[Outcome]]()
        for _ in range(GENERATIONS):
            resumed = build(6)
            for earlier in told:
                resumed.ask()
                resumed.tell(earlier)
            candidates = whole.ask()
            same = resumed.ask()
            assert [written(c.genome) for c in candidates] == [written(c.genome) for c in same]
            told.append(outcomes(candidates, failing(entry.score)))
            whole.tell(told[-1])
            resumed.tell(told[-1])
            assert recommended(resumed) == recommended(whole)

    def test_beats_random_recombination_of_founders(self, entry: Entry) -> None:
        ours = median_of_best(entry.build)
        random = median_of_best(partial(GeneticAlgorithm, population=Childless()))
        assert ours > 0.75 * random, f"{entry.name} {ours}, random recombination {random}"


@cache
def median_of_best(build: Callable[..., GeneticAlgorithm]) -> float:
    """Over three problems, after 300 evaluations; 0 is perfect."""
    found = []
    for seed in range(3):
        problem = Problem(seed=seed)
        strategy = build(seed=seed, founders=problem.names)
        one = isinstance(strategy._population, Truncation)
        found.append(best(evolve(strategy, problem.one if one else problem.several, 300)))
    return float(np.median(found))


@dataclass(frozen=True)
class Childless:
    """Nobody lives on: every generation is bred from the founders."""

    reads_cases = False

    def check_objectives(self, count: int) -> None:
        """Accepts everything."""

    def check_cases(self, outcomes: Any, members: Any) -> None:
        """Accepts everything."""

    def survivors(self, individuals: Any) -> list[Any]:
        return []

    def pairing(self, members: Any, generation: int) -> Any:
        raise AssertionError("there are no members")


if __name__ == "__main__":
    print(json.dumps(asked_by_all()))
