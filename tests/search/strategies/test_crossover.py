"""The genetic search: generations, limits, what its populations are for, and resuming a search."""

from __future__ import annotations

import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from merging.lineages.lineage import (
    Founder,
    Lineage,
    Mutated,
    ancestry,
    founders,
    lineage_from_json,
    lineage_to_json,
)
from merging.spaces.lineage import LineageSpace
from search.loop.evaluation import Evaluation
from search.loop.generational import search
from search.loop.history import History
from search.loop.session import Budget
from search.normalisation import Term
from search.objective import BoundObjective
from search.populations import archives, fronts, niches, population, variation
from search.populations.archives import CycleQD, MapElites
from search.populations.fronts import Fronts
from search.populations.niches import Niches
from search.populations.population import Truncation
from search.populations.variation import Bred, Variation
from search.strategies.crossover import GeneticAlgorithm
from search.strategy import Outcome
from tests.merging.memory_pool import random_pool
from tests.search.loop.test_loop import pool_of
from tests.search.strategies.lineages import Problem, Scored, best, decode, evolve, outcomes

CONF = Path(__file__).parents[3] / "conf" / "strategy"
NAMES = ("a", "b", "c")
SEGMENTS = partial(
    Variation,
    uniform=0.0,
    one_point=0.0,
    two_point=0.0,
    layer_points=0.0,
    per_tensor=0.0,
    slerp=0.0,
    arithmetic=0.0,
    scale=0.0,
    low_rank=0.0,
    sign=0.0,
)


def by_number(lineage: Lineage) -> tuple[Vector, Vector]:
    """Any fitness that depends on the lineage alone."""
    number = int.from_bytes(lineage.key[:2], "big")
    return np.array([float(number)]), np.array([number % 7.0, number % 11.0])


class TestGenerations:
    def test_the_first_are_founders_and_children_of_two_of_them(self) -> None:
        genomes = [c.genome for c in GeneticAlgorithm(seed=0, founders=NAMES, popsize=12).ask()]
        assert genomes[:3] == [Founder(name) for name in NAMES]
        assert len(genomes) == 12
        for genome in genomes[3:]:
            assert 1 <= len(founders(genome)) <= 2
            assert set(founders(genome)) <= set(NAMES)
        assert len(set(genomes)) == 12

    @pytest.mark.parametrize("popsize", [1, 2, 3])
    def test_a_small_first_generation_is_the_founders_alone(self, popsize: int) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=popsize)
        assert [c.genome for c in strategy.ask()] == [Founder(name) for name in NAMES]
        strategy.tell([Outcome(i, np.array([1.0])) for i in range(3)])
        assert [c.id for c in strategy.ask()] == list(range(3, 3 + popsize))

    def test_popsize_and_population_are_two_things(self) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=9, population=Truncation(4))
        for _ in range(4):
            told = outcomes(strategy.ask(), by_number)
            assert len(told) == 9
            strategy.tell(told)
            assert len(strategy._members) == 4

    def test_parents_are_members(self) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, population=Truncation(3), backcross=0)
        for _ in range(4):
            strategy.tell(outcomes(strategy.ask(), by_number))
            members = {one.bred.genome for one in strategy._members}
            candidates = strategy.ask()
            for candidate in candidates:
                one = candidate.genome
                while isinstance(one, Mutated) and one not in members:
                    one = one.parent
                assert one in members or set(one.parents) <= members
            strategy.tell(outcomes(candidates, by_number))

    def test_a_backcross_is_with_a_founder_that_lives_no_more(self) -> None:
        def later(lineage: Lineage) -> tuple[Vector, Vector]:
            return np.array([float(len(ancestry(lineage)))]), np.zeros(1)

        for backcross, expected in ((0.0, 0.0), (0.4, 0.4), (1.0, 1.0)):
            crossed, mates = Variation(scale=0.0, low_rank=0.0, sign=0.0), 0
            strategy = GeneticAlgorithm(
                seed=0, founders=NAMES, popsize=50, backcross=backcross, variation=crossed
            )
            for _ in range(4):
                strategy.tell(outcomes(strategy.ask(), later))
            assert not {one.bred.genome for one in strategy._members} & set(map(Founder, NAMES))
            for _ in range(4):
                candidates = strategy.ask()
                mates += sum(isinstance(c.genome.parents[1], Founder) for c in candidates)
                strategy.tell(outcomes(candidates, later))
            assert mates / 200 == pytest.approx(expected, abs=0.1)

    def test_relatives_share_their_ancestors(self) -> None:
        """A population is one graph: what it holds grows by a few nodes per child."""
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=16)
        evolve(strategy, by_number, 320)
        nodes = {id(each) for one in strategy._members for each in ancestry(one.bred.genome)}
        assert len(nodes) <= 3 + 4 * 320

    def test_children_have_at_most_the_ancestors_allowed(self) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=8, ancestors=12)
        sizes = []
        for _ in range(30):
            candidates = strategy.ask()
            sizes += [len(ancestry(candidate.genome)) for candidate in candidates]
            strategy.tell(outcomes(candidates, by_number))
        assert 10 < max(sizes) <= 12

    def test_the_longest_lineage_allowed_is_a_small_recipe(self) -> None:
        everyone = [Bred(Founder(name)) for name in NAMES]
        rng = np.random.default_rng(0)
        while len(ancestry(everyone[-1].genome)) < 300:  # everyone descends from all before
            second = everyone[int(rng.integers(len(everyone)))]
            child = Variation().child(everyone[-1], second, seed=0, number=len(everyone))
            everyone.append(child)
        assert len(json.dumps(lineage_to_json(everyone[-1].genome))) < 30_000

    def test_a_founder_alone_is_mutated(self) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=["a"], popsize=4)
        for _ in range(3):
            candidates = strategy.ask()
            assert all(founders(candidate.genome) == ("a",) for candidate in candidates)
            strategy.tell(outcomes(candidates, by_number))

    def test_a_member_alone_is_mutated_or_founders_have_a_child(self) -> None:
        for build, kind in ((Variation, Mutated), (SEGMENTS, None)):
            strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=5, variation=build())
            alone, *failed = strategy.ask()
            strategy.tell([Outcome(0, np.array([1.0])), *(Outcome(c.id, None) for c in failed)])
            for candidate in strategy.ask():
                assert kind is None or isinstance(candidate.genome, kind)
                assert kind is None or founders(candidate.genome) == ("a",)
            assert strategy.recommend() == [alone.genome]

    def test_a_founder_that_failed_has_no_children(self) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=3, ancestors=4)
        strategy.ask()
        strategy.tell([Outcome(0, np.array([1.0])), Outcome(1, None), Outcome(2, np.array([0.0]))])
        for _ in range(10):
            candidates = strategy.ask()
            assert all("b" not in founders(candidate.genome) for candidate in candidates)
            strategy.tell(outcomes(candidates, by_number))

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"founders": []}, r"founders must be a list of different names, got \[\]"),
            ({"founders": "expert"}, "founders must be a list of different names, got 'expert'"),
            ({"founders": ["a", "a"]}, "founders must be a list of different names"),
            ({"popsize": 0}, "popsize must be at least 1, got 0"),
            ({"backcross": -0.5}, r"backcross must lie in \[0, 1\], got -0.5"),
            ({"ancestors": 0}, "ancestors must be at least 1, got 0"),
            (
                {"founders": ["a"], "variation": SEGMENTS()},
                "'a' is the only founder and nothing mutates it: name a second expert, or give",
            ),
        ],
    )
    def test_options_without_meaning_are_refused(
        self, options: dict[str, Any], match: str
    ) -> None:
        with pytest.raises(ValueError, match=match):
            GeneticAlgorithm(**{"seed": 0, "founders": NAMES, **options})

    def test_niches_without_cases_are_refused_at_the_first_tell(self) -> None:
        strategy = GeneticAlgorithm(seed=0, founders=NAMES, popsize=3, population=Niches(4))
        candidates = strategy.ask()
        with pytest.raises(
            ValueError, match=r"Niches form on per-item scores, candidate 0 has none"
        ):
            strategy.tell([Outcome(c.id, np.array([1.0])) for c in candidates])
        strategy.tell(outcomes(candidates, by_number))  # nothing is lost


class TestWhatItIsFor:
    def test_mutation_and_extrapolation_leave_what_recombination_can_reach(self) -> None:
        """The target is twice the mean of the founders: outside their hull."""
        rng = np.random.default_rng(0)
        parents = {name: rng.normal(size=24) for name in NAMES}
        target = 2 * np.mean(list(parents.values()), axis=0)

        def score(lineage: Lineage) -> tuple[Vector, Vector]:
            items = -((decode(lineage, parents) - target) ** 2)
            return np.array([items.mean()]), items

        convex = Variation(extrapolate=0.0, scale=0.0, low_rank=0.0, sign=0.0, slerp=0.0)

        def found(variation: Variation) -> float:
            strategy = GeneticAlgorithm(seed=1, founders=NAMES, variation=variation)
            return best(evolve(strategy, score, 240))

        assert found(Variation()) > 0.5 * found(convex)

    @pytest.mark.parametrize("name", ["one_point", "split_slerp"])
    def test_split_points_move_to_the_planted_one(self, name: str) -> None:
        """The target is one founder up to 0.3 of the vector and the other one behind."""
        rng = np.random.default_rng(0)
        parents = {"a": rng.normal(size=240), "b": rng.normal(size=240)}
        target = np.where(np.arange(240) < 72, parents["a"], parents["b"])
        weights: dict[str, Any] = {"split_slerp": 0.0, name: 1.0}
        variation = SEGMENTS(**weights, drift=0.05)

        def score(lineage: Lineage) -> tuple[Vector, Vector]:
            items = -((decode(lineage, parents) - target) ** 2)
            return np.array([items.mean()]), items

        def distance(scored: Scored, generations: int) -> float:
            """Median over the members of eight searches."""
            cuts = []
            for seed in range(8):
                strategy = GeneticAlgorithm(
                    seed=seed,
                    founders=["a", "b"],
                    popsize=12,
                    population=Truncation(6),
                    variation=variation,
                )
                evolve(strategy, scored, 12 * generations)
                cuts += [one.bred.split.cut for one in strategy._members if one.bred.split]
            return float(np.median(np.abs(np.array(cuts) - 0.3)))

        assert distance(score, 1) > 0.2
        assert distance(by_number, 5) > 0.2
        assert distance(score, 5) < 0.1

    def test_niches_keep_specialists_that_survival_of_the_fittest_loses(self) -> None:
        """Founder 0 solves items 0 to 19, each of the others three that nobody else does."""
        owner = np.concatenate([np.zeros(20), np.repeat([1, 2, 3, 4], 3)])
        codes = {f"expert{k}": np.where(owner == k, 1.0, 0.0) for k in range(5)}

        def score(lineage: Lineage) -> tuple[Vector, Vector]:
            right = (decode(lineage, codes) > 0.5).astype(float)
            return np.array([right.mean()]), right

        def solved(rules: Any, seed: int) -> int:
            """How many items at least one member solves, of 32."""
            strategy = GeneticAlgorithm(
                seed=seed,
                founders=list(codes),
                popsize=5,
                backcross=0.0,
                population=rules,
                variation=SEGMENTS(),
            )
            evolve(strategy, score, 150)
            rows = [score(one.bred.genome)[1] for one in strategy._members]
            return int((np.max(rows, axis=0) > 0).sum())

        with_niches = [solved(Niches(8), seed) for seed in range(5)]
        without = [solved(Truncation(8), seed) for seed in range(5)]
        assert np.median(with_niches) == 32, (with_niches, without)
        assert min(with_niches) > max(without), (with_niches, without)

    def test_fronts_approach_the_known_front(self) -> None:
        """-|x - a|^2 against -|x - b|^2: the front is the segment between a and b."""
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=12), rng.normal(size=12)
        parents = {f"expert{k}": rng.normal(size=12) + (a, b)[k % 2] for k in range(4)}
        length = float(np.linalg.norm(a - b))

        def score(lineage: Lineage) -> tuple[Vector, Vector]:
            x = decode(lineage, parents)
            return np.array([-((x - a) ** 2).sum(), -((x - b) ** 2).sum()]), x

        def excess(strategy: GeneticAlgorithm) -> Vector:
            """How much longer the way a to x to b is than the straight one."""
            evolve(strategy, score, 360)
            found = np.array([score(lineage)[0] for lineage in strategy.recommend()])
            ways: Vector = np.sqrt(-found).sum(axis=1) / length - 1
            return ways

        start = np.median([np.sqrt(-score(Founder(n))[0]).sum() / length - 1 for n in parents])
        strategy = GeneticAlgorithm(
            seed=0, founders=list(parents), population=Fronts(12), popsize=12
        )
        found = excess(strategy)
        assert start > 0.5
        assert np.median(found) < 0.12
        ends = np.array([score(lineage)[0] for lineage in strategy.recommend()])
        assert len(ends) >= 10
        assert np.sqrt(-ends).min(axis=0).max() < 0.5 * length  # of both ends of the segment

    @pytest.mark.parametrize("rules", [MapElites(4, -1.0, 0.0), CycleQD(4, -1.0, 0.0)])
    def test_archives_fill_more_cells_than_fronts(self, rules: MapElites | CycleQD) -> None:
        grid = archives.ArchiveGrid(4, -1.0, 0.0)

        def cells(rules: Any) -> int:
            problem = Problem(founders=2, seed=1)
            strategy = GeneticAlgorithm(
                seed=0, founders=problem.names, popsize=8, population=rules
            )
            evolve(strategy, problem.several, 240)
            return len({grid.cell(one.fitness) for one in strategy._members})

        assert cells(rules) > cells(Fronts(16))


def test_children_are_genomes_of_the_lineage_space() -> None:
    pool = random_pool({"layers.0.w": (6, 5), "layers.1.w": (6, 5), "bias": (6,)}, seed=1)
    space = LineageSpace(pool)
    strategy = GeneticAlgorithm(seed=0, popsize=12, **space.domain)
    for _ in range(3):
        candidates = strategy.ask()
        for candidate in candidates:
            assert space.from_json(space.to_json(candidate.genome)) == candidate.genome
            weights = space.decode(candidate.genome)
            assert all(bool(weights[name].isfinite().all()) for name in weights)
        strategy.tell(outcomes(candidates, by_number))


class Killed(Exception):
    """Stands for the end of the process."""


class TestSearch:
    POPULATIONS = (Truncation(6), Niches(6), Fronts(6))

    def run(self, directory: Path, rules: Any, kill_at: int | None = None) -> Any:
        directory.mkdir(exist_ok=True)
        problem, done = Problem(), 0

        def evaluate(lineage: Lineage) -> dict[str, Score]:
            nonlocal done
            if done == kill_at:
                raise Killed
            done += 1
            items = -problem.items(lineage)
            if items[3] > 2:
                raise EvaluationError("out of memory")
            return {"t/loss": Score(float(items.mean()), items)}

        return search(
            GeneticAlgorithm(seed=1, founders=problem.names, popsize=5, population=rules),
            Evaluation(pool_of(evaluate)),
            BoundObjective((Term("t", "t/loss", -1.0),), (1.0,)),
            History(directory),
            Budget(evaluations=24),
            encode=lineage_to_json,
        )

    @pytest.mark.parametrize("rules", POPULATIONS, ids=lambda rules: type(rules).__name__)
    def test_killed_anywhere_and_started_again_gives_the_same_bytes(
        self, tmp_path: Path, rules: Any
    ) -> None:
        whole = self.run(tmp_path / "whole", rules)
        for kill_at in (0, 5, 17):
            directory = tmp_path / f"killed{kill_at}"
            with pytest.raises(Killed):
                self.run(directory, rules, kill_at)
            resumed = self.run(directory, rules)
            assert (resumed.stop, resumed.best) == (whole.stop, whole.best)
            for name in ("history.jsonl", "cases.jsonl"):
                assert (directory / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_a_record_of_the_history_is_a_genome(self, tmp_path: Path) -> None:
        result = self.run(tmp_path / "run", Niches(6))
        top = result.records[result.best[0]]
        items = -Problem().items(lineage_from_json(top.genome))
        assert -float(items.mean()) == top.fitness[0]


@pytest.mark.parametrize("name", ["crossover", "m2n2", "nsga2", "map_elites", "cycle_qd"])
def test_files_name_every_option_of_population_and_variation(name: str) -> None:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    for node in (options["population"], options["variation"]):
        module, _, built = node.pop("_target_").rpartition(".")
        homes = {home.__name__: home for home in (archives, fronts, niches, population, variation)}
        assert set(node) == set(inspect.signature(getattr(homes[module], built)).parameters)
