"""MERGEvolve: its step against theory and an independent version, and the strategy's promises."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path as File
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from merging.paths.noise import GaussianNoise
from merging.paths.path import Path
from merging.seeding import stable_seed
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from merging.weights import Weights
from search.loop.evaluation import Evaluation
from search.loop.generational import search
from search.loop.history import History
from search.loop.session import Budget, SearchFailed
from search.normalisation import Term
from search.objective import BoundObjective
from search.strategies.mergevolve import (
    MergEvolve,
    initial_weights,
    rank_utilities,
    utilities_of,
)
from search.strategy import Candidate, Outcome
from tests.merging.memory_pool import memory_pool, random_pool
from tests.search.loop.test_loop import pool_of

evolver = partial(MergEvolve, starts=["start"])
SHAPES = {"w": (8, 9), "v": (5, 8), "bias": (6,)}
SIZE = 72 + 40 + 6
OBJECTIVE = BoundObjective((Term("t", "t/loss", -1.0),), (1.0,))
OPTIONS: list[dict[str, Any]] = [
    {},
    {"antithetic": True, "popsize": 6},
    {"momentum": 0.8, "memory": 2},
    {"adapt": 2.0, "include_centre": "always"},
    {"sigma_decay": 0.8, "alpha_decay": 0.9, "include_centre": "never"},
    {"pairing": "as_released", "popsize": 3},
    {"starts": ["start", "base"], "antithetic": True, "momentum": 0.5},
]


def space_of(seed: int = 0) -> FullWeightSpace:
    pool = random_pool(SHAPES, seed=1)
    return FullWeightSpace(
        pool, GaussianNoise(), initial=weighted_start(pool, [0.5, 0.25, 0.25]), seed=seed
    )


def zero_space(seed: int) -> FullWeightSpace:
    """A space whose base is 0: what is decoded is the noise."""
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return FullWeightSpace(memory_pool(zeros, [zeros]), GaussianNoise(), seed=seed)


def flat(weights: Weights) -> Vector:
    return np.concatenate([weights[name].double().numpy().ravel() for name in weights])


def told(
    candidates: Sequence[Candidate[Path]], score: Callable[[Path], float | None]
) -> list[Outcome]:
    values = [score(candidate.genome) for candidate in candidates]
    return [
        Outcome(c.id, None if value is None else np.array([value]))
        for c, value in zip(candidates, values, strict=True)
    ]


def by_genome(path: Path) -> float | None:
    """Any function of the genome alone that has some ties and failures."""
    number = stable_seed(json.dumps(path.to_json())) % 11
    return None if number == 3 else float(number // 2)


def asked(strategy: MergEvolve, generations: int = 5) -> list[Any]:
    genomes = []
    for _ in range(generations):
        candidates = strategy.ask()
        genomes += [[candidate.id, candidate.genome.to_json()] for candidate in candidates]
        strategy.tell(told(candidates, by_genome))
    return genomes


def asked_by_all() -> list[Any]:
    return [asked(evolver(seed=3, **options)) for options in OPTIONS]


class TestFormulas:
    def test_initial_weights_by_hand(self) -> None:
        np.testing.assert_allclose(
            initial_weights([1.0, 2.0, 3.0]), [0.06256, 0.21289, 0.72455], atol=1e-5
        )
        cold = initial_weights([1.0, 2.0, 3.0], temperature=0.1)
        np.testing.assert_allclose(cold[2], 1 / (1 + math.exp(-12.2474) + math.exp(-24.4949)))
        np.testing.assert_allclose(
            initial_weights([10.0, 30.0, 20.0]), initial_weights([0.1, 0.3, 0.2])
        )

    def test_initial_weights_of_equals_and_of_one(self) -> None:
        np.testing.assert_array_equal(initial_weights([2.5, 2.5]), [0.5, 0.5])
        np.testing.assert_array_equal(initial_weights([7.0]), [1.0])

    @pytest.mark.parametrize("fitness", [[], [1.0, math.nan], [math.inf, 1.0]])
    def test_initial_weights_of_nothing_finite_are_refused(self, fitness: list[float]) -> None:
        with pytest.raises(ValueError, match="fitness must be one finite number per expert"):
            initial_weights(fitness)
        with pytest.raises(ValueError, match="temperature must be a finite number above 0, got 0"):
            initial_weights([1.0], temperature=0)

    def test_rank_utilities_by_hand(self) -> None:
        np.testing.assert_allclose(rank_utilities(4), [0.48042, 0.01958, -0.25, -0.25], atol=1e-5)
        for count in (2, 3, 10, 101):
            assert abs(rank_utilities(count).sum()) < 1e-12
            assert (np.diff(rank_utilities(count)) <= 0).all()

    def test_equals_share_their_utilities_and_failures_rank_worst(self) -> None:
        by_rank = rank_utilities(4)
        np.testing.assert_allclose(
            utilities_of([2.0, 5.0, 2.0, None]),
            [by_rank[1:3].mean(), by_rank[0], by_rank[1:3].mean(), by_rank[3]],
        )
        assert not utilities_of([1.0, 1.0, 1.0]).any()
        assert not utilities_of([None, None]).any()


def theory(
    popsize: int, antithetic: bool, size: int = SIZE, runs: int = 20_000, curvature: float = 0.0
) -> float:
    """The mean cosine of the step with the gradient of a linear or quadratic fitness.

    Along the gradient the noises are s_i ~ N(0, 1), across it N(0, I) and independent of the
    ranks, which are those of s. So the step has P = sum_i u_i s_i along and a length of
    |u| chi(size - 1) across, and its cosine is P / sqrt(P^2 + |u|^2 chi^2): about
    sum_k u_k m_k / (|u| sqrt(size)), m_k the normal order statistics. For antithetic pairs u_i is
    the difference of the utilities of both sides. A curvature c takes c times the squared length
    of a sample, ``s^2 + chi^2(size - 1)``, from its fitness, here in units of the gradient's
    length times sigma, and its length across from being independent of the ranks. Only these
    scalars are drawn here.
    """
    rng = np.random.default_rng(0)
    along = rng.normal(size=(runs, popsize // 2 if antithetic else popsize))
    across = rng.chisquare(size - 1, along.shape)
    bent = curvature * (along**2 + across)
    scores = np.concatenate([along - bent, -along - bent], 1) if antithetic else along - bent
    places = (-scores).argsort(1).argsort(1)
    u = rank_utilities(popsize)[places]
    if antithetic:
        u = u[:, : popsize // 2] - u[:, popsize // 2 :]
    step, square = (u * along).sum(1), (u**2 * across).sum(1)
    return float(np.mean(step / np.sqrt(step**2 + square)))


def cosines(runs: int, curvature: float = 0.0, **options: Any) -> npt.NDArray[np.float64]:
    """Cosines of one step from 0 with the gradient there, over run seeds."""
    gradient = np.random.default_rng(5).normal(size=SIZE)
    found = []
    for seed in range(runs):
        space = zero_space(seed)
        strategy = evolver(seed=seed, starts=["base"], include_centre="never", **options)

        def score(path: Path, space: FullWeightSpace = space) -> float:
            x = flat(space.decode(path))
            return float(gradient @ x - curvature * np.linalg.norm(gradient) / 0.1 * (x @ x))

        strategy.tell(told(strategy.ask(), score))
        step = flat(space.decode(strategy.ask()[0].genome.centre))
        found.append(gradient @ step / np.linalg.norm(gradient) / np.linalg.norm(step))
    return np.array(found)


class TestStep:
    @pytest.mark.parametrize(
        ("popsize", "antithetic", "about", "runs"),
        [
            (4, False, 0.128, 250),
            (10, False, 0.222, 150),
            (40, False, 0.427, 60),
            (10, True, 0.188, 150),
        ],
    )
    def test_cosine_with_the_gradient_is_what_theory_says(
        self, popsize: int, antithetic: bool, about: float, runs: int
    ) -> None:
        expected = theory(popsize, antithetic)
        assert expected == pytest.approx(about, abs=0.002)
        found = cosines(runs, popsize=popsize, antithetic=antithetic)
        assert abs(found.mean() - expected) < 3 * found.std() / math.sqrt(runs)

    @pytest.mark.parametrize(("antithetic", "about"), [(False, 0.125), (True, 0.154)])
    def test_cosine_on_a_quadratic_fitness_is_what_theory_says(
        self, antithetic: bool, about: float
    ) -> None:
        """Pairs lose less to curvature: of both sides the one up the slope is still better."""
        expected = theory(10, antithetic, curvature=0.1)
        assert expected == pytest.approx(about, abs=0.004)
        found = cosines(150, popsize=10, antithetic=antithetic, curvature=0.1)
        assert abs(found.mean() - expected) < 3 * found.std() / math.sqrt(len(found))

    def test_as_released_has_no_cosine_with_the_gradient(self) -> None:
        found = cosines(300, popsize=10, pairing="as_released")
        error = found.std() / math.sqrt(len(found))
        assert abs(found.mean()) < 3 * error
        assert theory(10, False) > 20 * error

    @pytest.mark.parametrize("options", OPTIONS[:5], ids=str)  # it knows all but two
    def test_a_search_equals_an_independent_version(self, options: dict[str, Any]) -> None:
        space, target = space_of(4), np.random.default_rng(2).normal(size=SIZE)

        def score(path: Path) -> float:
            return -float(((flat(space.decode(path)) - target) ** 2).sum())

        strategy = evolver(seed=0, sigma=0.2, alpha=0.3, **options)
        for _ in range(4):
            strategy.tell(told(strategy.ask(), score))
        found = flat(space.decode(strategy.ask()[-1].genome.centre))
        expected = dense(space, target, 4, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(found - flat(space.decode(Path("start")))).max() > 0.05

    def test_an_all_equal_generation_does_not_move_the_centre(self) -> None:
        strategy = evolver(seed=0)
        first = strategy.ask()
        strategy.tell(told(first, lambda path: 1.0))
        second = strategy.ask()
        assert {c.genome.centre for c in [*first, *second]} == {Path("start")}
        assert first[1].genome.own != second[0].genome.own

    def test_the_best_start_becomes_the_centre(self) -> None:
        strategy = evolver(seed=0, starts=["start", "ties", "base"])
        starts = strategy.ask()
        assert [c.genome for c in starts] == [Path("start"), Path("ties"), Path("base")]
        strategy.tell([Outcome(2, None), Outcome(1, np.array([3.0])), Outcome(0, np.array([2.0]))])
        samples = strategy.ask()
        assert len(samples) == 10
        assert {c.genome.centre for c in samples} == {Path("ties")}

    def test_beats_random_search_on_a_sphere(self) -> None:
        target = np.random.default_rng(2).normal(size=SIZE)

        def best(seed: int, moves: bool) -> tuple[float, float]:
            space = zero_space(seed)
            strategy = evolver(seed=seed, starts=["base"], sigma=0.3, alpha=0.3)
            highest = -math.inf

            def score(path: Path) -> float:
                return -float(((flat(space.decode(path)) - target) ** 2).mean())

            for generation in range(40):
                candidates = strategy.ask()
                if not moves:  # the same number of samples, all around the start
                    candidates = [
                        Candidate(c.id, Path("base").perturbed(100 * generation + i, 0.3))
                        for i, c in enumerate(candidates)
                    ]
                outcomes = told(candidates, score)
                highest = max(highest, *(float(o.fitness[0]) for o in outcomes))  # type: ignore[index]
                strategy.tell(outcomes)
            return highest, score(Path("base"))

        ours = np.median([best(seed, True)[0] for seed in range(3)])
        random = np.median([best(seed, False)[0] for seed in range(3)])
        start = best(0, False)[1]
        assert ours > 0.5 * start, (ours, random, start)
        assert ours - start > 3 * (random - start), (ours, random, start)


def dense(
    space: FullWeightSpace,
    target: Vector,
    generations: int,
    *,
    popsize: int = 10,
    antithetic: bool = False,
    momentum: float = 0.0,
    memory: int = 0,
    adapt: float = 0.0,
    sigma_decay: float = 1.0,
    alpha_decay: float = 1.0,
    include_centre: str = "",
) -> Vector:
    """The centre after some generations, with whole vectors in float64 and no paths."""
    theta = flat(space.decode(Path("start")))
    sigma, moves, number = 0.2, list[Vector](), 0
    for t in range(generations):
        noises = []
        for _ in range(popsize // 2 if antithetic else popsize):
            seed = stable_seed("noise", 4, number)
            parts = [GaussianNoise().on(n, space.pool)(seed) for n in space.pool.names]
            noises.append(np.concatenate([p.double().numpy().ravel() for p in parts]))
            number += 1
        if antithetic:
            noises = [side for noise in noises for side in (noise, -noise)]
        fitness = [-float(((theta + sigma * e - target) ** 2).sum()) for e in noises]
        order = sorted(range(popsize), key=lambda i: -fitness[i])
        utilities = rank_utilities(popsize)
        alpha = 0.3 * alpha_decay**t * (sigma / 0.2) ** 2
        moves.append(
            alpha
            / (popsize * sigma)
            * sum(u * noises[i] for u, i in zip(utilities, order, strict=True))
        )
        here = -float(((theta - target) ** 2).sum())
        for age in range(min(memory, t) + 1 if momentum else 1):
            theta = theta + momentum**age * moves[t - age]
        sigma *= sigma_decay * math.exp(adapt * (np.mean([f > here for f in fitness]) - 0.2))
    return theta


class TestPromises:
    @pytest.fixture(params=OPTIONS, ids=str)
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        options: dict[str, Any] = request.param
        return options

    def test_ids_count_from_zero_and_noises_never_repeat(self, options: dict[str, Any]) -> None:
        rows = asked(evolver(seed=0, **options))
        assert [row[0] for row in rows] == list(range(len(rows)))
        own = [tuple(row[1]["own"]) for row in rows if row[1]["own"]]
        assert len(own) == len(set(own))

    def test_order_of_telling_changes_nothing(self, options: dict[str, Any]) -> None:
        one, other = evolver(seed=1, **options), evolver(seed=1, **options)
        for generation in range(5):
            outcomes = told(one.ask(), by_genome)
            shuffled = np.random.default_rng(generation).permutation(len(outcomes))
            assert len(other.ask()) == len(outcomes)
            one.tell(outcomes)
            other.tell([outcomes[i] for i in shuffled])
            assert one.recommend() == other.recommend()
        assert [c.genome for c in one.ask()] == [c.genome for c in other.ask()]

    def test_recommends_the_best_ever_told_and_of_equals_the_first(
        self, options: dict[str, Any]
    ) -> None:
        strategy, seen = evolver(seed=2, **options), list[tuple[float, int, Path]]()
        assert strategy.recommend() == []
        for _ in range(6):
            candidates = strategy.ask()
            outcomes = told(candidates, by_genome)
            strategy.tell(outcomes)
            seen += [
                (-float(o.fitness[0]), o.id, c.genome)
                for c, o in zip(candidates, outcomes, strict=True)
                if o.fitness is not None
            ]
        assert strategy.recommend() == [min(seen)[2]]

    def test_a_replayed_strategy_goes_on_as_one_never_stopped(
        self, options: dict[str, Any]
    ) -> None:
        whole, history = evolver(seed=6, **options), list[list[Outcome]]()
        for _ in range(4):
            resumed = evolver(seed=6, **options)
            for earlier in history:
                resumed.ask()
                resumed.tell(earlier)
            candidates = whole.ask()
            assert [c.genome for c in resumed.ask()] == [c.genome for c in candidates]
            history.append(told(candidates, by_genome))
            whole.tell(history[-1])
            resumed.tell(history[-1])
            assert resumed.recommend() == whole.recommend()

    def test_order_of_calls_is_checked(self, options: dict[str, Any]) -> None:
        strategy = evolver(seed=0, **options)
        with pytest.raises(RuntimeError, match=r"tell\(\) was called before ask\(\)"):
            strategy.tell([])
        candidates = strategy.ask()
        with pytest.raises(RuntimeError, match=r"ask\(\) was called before candidates \[0.* told"):
            strategy.ask()
        with pytest.raises(ValueError, match=r"missing: \[0\]; never asked: \[77\]"):
            strategy.tell([Outcome(77, None), *told(candidates[1:], by_genome)])
        strategy.tell(told(candidates, by_genome))

    def test_a_generation_of_failures_keeps_the_centre(self, options: dict[str, Any]) -> None:
        strategy = evolver(seed=0, **options)
        for _ in range(3):
            strategy.tell(told(strategy.ask(), lambda path: None))
        assert strategy.recommend() == []
        assert {c.genome.centre.steps for c in strategy.ask()} == {()}

    def test_global_generators_are_neither_read_nor_moved(self, options: dict[str, Any]) -> None:
        np.random.seed(1)
        torch.manual_seed(1)
        first = asked(evolver(seed=3, **options))
        assert np.random.rand() == np.random.RandomState(1).rand()
        np.random.seed(2)
        torch.manual_seed(2)
        assert asked(evolver(seed=3, **options)) == first


def test_another_process_asks_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.strategies.test_mergevolve"],
        cwd=File(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(asked_by_all()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"antithetic": True, "popsize": 5}, "antithetic pairs need an even popsize, got 5"),
        (
            {"adapt": 1.0},
            "adapt compares samples with their centre: choose include_centre 'al",
        ),
        ({"starts": ["a", "b"], "include_centre": "never"}, "'never' leaves no score to choose"),
        ({"starts": []}, r"starts must be a list of different names, got \[\]"),
        ({"starts": ["a", "a"]}, "starts must be a list of different names"),
        ({"starts": "start"}, "starts must be a list of different names, got 'start'"),
        ({"include_centre": "maybe"}, "include_centre must be 'start', 'always' or 'never', got"),
        ({"pairing": "random"}, "pairing must be 'aligned' or 'as_released', got 'random'"),
        ({"popsize": 1}, "popsize must be at least 2, got 1"),
        ({"memory": 0}, "memory must be at least 1, got 0"),
        ({"generations": 0}, "generations must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"sigma": 0.0}, "sigma must be a finite number above 0, got 0"),
        ({"alpha": math.nan}, "alpha must be a finite number above 0, got nan"),
        ({"sigma_decay": -1.0}, "sigma_decay must be a finite number above 0"),
        ({"alpha_decay": math.inf}, "alpha_decay must be a finite number above 0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"adapt": -1.0}, "adapt must be a finite number of at least 0, got -1"),
    ],
    ids=str,
)
def test_options_without_meaning_or_in_conflict_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evolver(seed=0, **options)


def test_several_objectives_are_refused_before_anything_is_told() -> None:
    strategy = evolver(seed=0)
    candidates = strategy.ask()
    with pytest.raises(ValueError, match="ranks by one number, candidate 0 has 2: choose an obj"):
        strategy.tell([Outcome(c.id, np.array([1.0, 2.0])) for c in candidates])
    strategy.tell(told(candidates, by_genome))


def test_generations_and_patience_end_the_search() -> None:
    counted = evolver(seed=0, generations=3)
    assert len(asked(counted, 3)) == 31
    assert counted.ask() == []
    patient = evolver(seed=0, patience=2, include_centre="never")
    for generation in range(3):
        patient.tell(told(patient.ask(), lambda path, g=generation: -float(g)))  # type: ignore[misc]
    assert patient.ask() == []


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


class TestLoop:
    @staticmethod
    def run(directory: File, options: Mapping[str, Any], kill_at: int | None = None) -> Any:
        directory.mkdir(exist_ok=True)
        space, done = space_of(1), 0

        def evaluate(path: Path) -> dict[str, Score]:
            nonlocal done
            if done == kill_at:
                raise Killed
            done += 1
            items = flat(space.decode(path))[:20] ** 2
            if items[3] > 3:
                raise EvaluationError("out of memory")
            return {"t/loss": Score(float(items.mean()), items)}

        return search(
            evolver(seed=1, popsize=4, **options),
            Evaluation(pool_of(evaluate)),
            OBJECTIVE,
            History(directory),
            Budget(evaluations=23),
            encode=Path.to_json,
        )

    @pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[6]], ids=str)
    def test_killed_anywhere_and_started_again_gives_the_same_bytes(
        self, tmp_path: File, options: dict[str, Any]
    ) -> None:
        options = {k: v for k, v in options.items() if k != "popsize"}
        whole = self.run(tmp_path / "whole", options)
        for kill_at in (0, 3, 5, 11, 22):
            directory = tmp_path / f"killed{kill_at}"
            with pytest.raises(Killed):
                self.run(directory, options, kill_at)
            resumed = self.run(directory, options)
            assert (resumed.stop, resumed.best) == (whole.stop, whole.best)
            for name in ("history.jsonl", "cases.jsonl"):
                assert (directory / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_a_record_of_the_history_is_a_genome(self, tmp_path: File) -> None:
        result = self.run(tmp_path / "run", {})
        space, best = space_of(1), result.records[result.best[0]]
        items = flat(space.decode(Path.from_json(best.genome)))[:20] ** 2
        assert -float(items.mean()) == best.fitness[0]

    def test_a_centre_that_was_scored_costs_nothing_again(self, tmp_path: File) -> None:
        result = self.run(tmp_path / "run", {**OPTIONS[6], "include_centre": "always"})
        assert result.repeats == 1

    def test_nothing_that_can_be_scored_ends_the_search(self, tmp_path: File) -> None:
        def fail(path: Path) -> dict[str, Score]:
            raise EvaluationError("no")

        with pytest.raises(SearchFailed, match=r"the last 11 candidates failed.*: no$"):
            search(
                evolver(seed=0),
                Evaluation(pool_of(fail)),
                OBJECTIVE,
                History(tmp_path),
                Budget(evaluations=50),
                encode=Path.to_json,
            )


if __name__ == "__main__":
    print(json.dumps(asked_by_all()))
