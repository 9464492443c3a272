"""Pursuit: its step against theory, what it promises as a strategy, and that it climbs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from merging.arrays import Matrix, Vector
from merging.paths.noise import GaussianNoise, Noise, RowNoise, StagedNoise, TensorNoise
from merging.paths.path import Path
from merging.plans import plan_from_description
from merging.seeding import stable_seed
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from merging.weights import Weights
from search.strategies.pursuit import Pursuit
from search.strategy import Candidate, Outcome
from tests.merging.memory_pool import memory_pool, random_pool

SHAPES = {"w": (20, 9), "v": (5, 8)}
SIZE = 180 + 40
RUNS = 20_000

Score = Callable[[Vector], "tuple[float, Vector | None] | None"]


def flat(weights: Weights) -> Vector:
    return np.concatenate([weights[name].double().numpy().ravel() for name in weights])


def zero_space(seed: int) -> FullWeightSpace:
    """A space whose base is 0: what is decoded is the noise."""
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return FullWeightSpace(memory_pool(zeros, [zeros]), GaussianNoise(), seed=seed)


def told(
    candidates: Sequence[Candidate[Path]], space: FullWeightSpace, score: Score
) -> list[Outcome]:
    found = [score(flat(space.decode(candidate.genome))) for candidate in candidates]
    return [
        Outcome(c.id, None) if one is None else Outcome(c.id, np.array([one[0]]), one[1])
        for c, one in zip(candidates, found, strict=True)
    ]


def first_step(seed: int, score: Score, **options: Any) -> tuple[Vector, Vector]:
    """Returns the longest of the first steps, and the noises of its generation ``(N, SIZE)``."""
    space = zero_space(seed)
    strategy = Pursuit(seed=0, starts=["base"], **options)
    samples = strategy.ask()
    own = {c.genome.own[0] for c in samples if c.genome.own}
    strategy.tell(told(samples, space, score))
    step = flat(space.decode(strategy.ask()[-1].genome))
    noises = [flat(space.decode(Path("base").perturbed(number, 1.0))) for number in sorted(own)]
    return step, np.array(noises)


def mean_cosine(score: Score, gradient: Vector, runs: int, **options: Any) -> tuple[float, float]:
    """Returns the mean cosine of the first step with the gradient, and its standard error."""
    found = []
    for seed in range(runs):
        step, _ = first_step(seed, score, **options)
        found.append(gradient @ step / np.linalg.norm(gradient) / np.linalg.norm(step))
    return float(np.mean(found)), float(np.std(found) / math.sqrt(runs))


def theory(
    noises: int, slopes: Callable[[Matrix, Matrix, np.random.Generator], Matrix], length: float
) -> float:
    """Returns the mean cosine of ``sum_i s_i eps_i`` with the gradient, from scalars alone.

    Along the gradient the noises are z_i ~ N(0, 1); across it they are independent directions of
    squared length r_i ~ chi^2(SIZE - 1), two of which are orthogonal but for a sum of no mean.

    Args:
        slopes: of z, ``(runs, noises)``, r and a generator: s, ``(runs, noises)``.
        length: of the gradient.
    """
    rng = np.random.default_rng(0)
    z, r = rng.normal(size=(RUNS, noises)), rng.chisquare(SIZE - 1, size=(RUNS, noises))
    s = slopes(length * z, z**2 + r, rng)
    along, across = (s * z).sum(1), (s**2 * r).sum(1)
    return float(np.mean(along / np.sqrt(along**2 + across)))


def centred(values: Matrix) -> Matrix:
    return values - values.mean(1, keepdims=True)


GRADIENT = np.random.default_rng(5).normal(size=SIZE)
LENGTH = float(np.linalg.norm(GRADIENT))


@pytest.mark.parametrize("popsize", [6, 24])
def test_cosine_on_a_linear_fitness_is_what_theory_says(popsize: int) -> None:
    def linear(x: Vector) -> tuple[float, None]:
        return float(GRADIENT @ x), None

    one_sided = theory(popsize, lambda g, r, rng: centred(g), LENGTH)
    both_sides = theory(popsize // 2, lambda g, r, rng: g, LENGTH)
    found, error = mean_cosine(linear, GRADIENT, 60, popsize=popsize)
    assert abs(found - one_sided) < 3 * error
    found, error = mean_cosine(linear, GRADIENT, 60, popsize=popsize, antithetic=True)
    assert abs(found - both_sides) < 3 * error
    # both about sqrt(N / (N + SIZE)); a pair costs two samples for one noise
    assert one_sided == pytest.approx(math.sqrt((popsize - 1) / (popsize + SIZE)), rel=0.05)
    assert both_sides < 0.85 * one_sided


def test_cosine_on_a_quadratic_fitness_without_and_with_pairs_and_small_sigma() -> None:
    curvature = 4.0

    def quadratic(x: Vector) -> tuple[float, None]:
        return float(GRADIENT @ x - curvature * x @ x), None

    def expected(sigma: float) -> float:
        # s_i = g z_i - curvature sigma |eps_i|^2, less the mean
        return theory(12, lambda g, r, rng: centred(g - curvature * sigma * r), LENGTH)

    found = {
        sigma: mean_cosine(quadratic, GRADIENT, 60, popsize=12, sigma=sigma)
        for sigma in (0.01, 0.5)
    }
    for sigma, (cosine, error) in found.items():
        assert abs(cosine - expected(sigma)) < 3 * error
    assert expected(0.5) < 0.6 * expected(0.01)
    paired, error = mean_cosine(quadratic, GRADIENT, 60, popsize=12, sigma=0.5, antithetic=True)
    assert abs(paired - theory(6, lambda g, r, rng: g, LENGTH)) < 3 * error


@pytest.mark.parametrize("common", [True, False])
def test_cosine_with_common_items_and_with_items_of_ones_own(common: bool) -> None:
    items, level, sigma = 10, 6.0, 0.3
    rng = np.random.default_rng(1)

    def score(x: Vector) -> tuple[float, None]:
        hardness = np.zeros(items) if common else level * rng.normal(size=items)
        return float(GRADIENT @ x + hardness.mean()), None

    noise = 0.0 if common else level / math.sqrt(items) / sigma  # of a slope
    wanted = theory(12, lambda g, r, rng: centred(g + noise * rng.normal(size=g.shape)), LENGTH)
    found, error = mean_cosine(score, GRADIENT, 80, popsize=12, sigma=sigma)
    assert abs(found - wanted) < 3 * error


def test_reliability_by_halves_of_the_items_is_the_share_that_others_show() -> None:
    items, spread, runs = 30, 4.0, 60
    own = np.random.default_rng(2).normal(size=(items, SIZE))
    own -= own.mean(0)  # these items' gradients differ; their mean is the gradient
    shift = np.random.default_rng(3).normal(size=SIZE) * spread / math.sqrt(items)

    def score(x: Vector) -> tuple[float, Vector]:
        cases = (GRADIENT + shift) @ x + spread * own @ x
        return float(cases.mean()), cases

    # var of a slope: |g|^2 of the gradient, spread^2 SIZE / items of the choice of the items
    share = (GRADIENT @ GRADIENT) / (GRADIENT @ GRADIENT + spread**2 * SIZE / items)
    lengths, gains, full = [], [], []
    for seed in range(runs):
        step, noises = first_step(seed, score, popsize=24)
        strategy = Pursuit(seed=0, starts=["base"], popsize=24)
        strategy.tell(told(strategy.ask(), zero_space(seed), score))
        assert strategy._slopes is not None
        lengths.append(strategy._slopes.reliability)
        # as far as a curvature of -1 along every noise allows, on what other items show
        slopes = np.linalg.lstsq(noises.T, step, rcond=None)[0]
        slopes *= ((GRADIENT + shift) @ step) / (slopes @ slopes)
        true = noises @ GRADIENT
        for times, into in ((lengths[-1], gains), (1.0, full)):
            move = times * slopes / 2
            into.append(true @ move - move @ move)
    assert np.mean(lengths) == pytest.approx(share, abs=0.08)
    assert np.mean(gains) > np.mean(full)


@pytest.mark.parametrize(
    ("sizes", "of_tasks", "shrunken"),
    [((20, 20), np.mean, True), ((10, 1000), np.mean, False), ((20, 20), np.min, False)],
    ids=["mean of the items", "tasks of unequal sizes", "worst task"],
)
def test_halves_of_the_items_shrink_only_where_fitness_is_their_mean(
    sizes: tuple[int, int], of_tasks: Callable[[list[float]], float], shrunken: bool
) -> None:
    rng = np.random.default_rng(0)
    strategy = Pursuit(seed=0, starts=["start"])
    outcomes = []
    for candidate in strategy.ask():
        tasks = [rng.normal(size=size) for size in sizes]
        fitness = np.array([of_tasks([float(task.mean()) for task in tasks])])
        outcomes.append(Outcome(candidate.id, fitness, np.concatenate(tasks)))
    strategy.tell(outcomes)
    reliability = 0.0 if strategy._slopes is None else strategy._slopes.reliability
    assert (reliability < 0.9) if shrunken else (reliability == 1.0)


def quadratic_bowl(space: FullWeightSpace, seed: int = 0) -> Score:
    goal = flat(space.decode(Path("start"))) + 0.1 * np.random.default_rng(seed).normal(size=SIZE)

    def score(x: Vector) -> tuple[float, Vector]:
        cases = -((x - goal) ** 2) * SIZE
        return float(cases.mean()), cases

    return score


def space_of(noise: Noise, seed: int = 0) -> FullWeightSpace:
    pool = random_pool(SHAPES, seed=1)
    start = weighted_start(pool, [0.5, 0.25, 0.25])
    return FullWeightSpace(pool, noise, initial=start, seed=seed)


def test_a_step_gives_what_slopes_and_curvature_say_whatever_the_population() -> None:
    """``sum s^2 / (4 |q|)``: so many directions, not so many steps, make the way."""
    gains = {}
    for popsize in (4, 20):
        space = space_of(GaussianNoise("deltas"))
        score = quadratic_bowl(space)
        strategy = Pursuit(
            seed=0, starts=["start"], popsize=popsize, sigma=0.01, shrink=False,
            generations=240 // popsize,
        )  # fmt: skip
        best = []
        while candidates := strategy.ask():
            outcomes = told(candidates, space, score)
            strategy.tell(outcomes)
            best.append(max(float(o.fitness[0]) for o in outcomes if o.fitness is not None))
        start = score(flat(space.decode(Path("start"))))
        assert start is not None
        gains[popsize] = 1 - best[-1] / start[0]
    # isotropic: each of 240 noises takes 1 / SIZE of what is left, one of the steps' mean lost
    assert gains[4] == pytest.approx(1 - (1 - 1 / SIZE) ** 180, abs=0.12)
    assert gains[20] == pytest.approx(1 - (1 - 1 / SIZE) ** 228, abs=0.12)


STAGED = StagedNoise(TensorNoise(whole=True), 24, TensorNoise())


@pytest.mark.parametrize("noise", [STAGED, RowNoise(), GaussianNoise("deltas")], ids=str)
def test_on_a_small_model_the_population_climbs_and_the_winner_rebuilds(noise: Noise) -> None:
    """A network of two layers on fixed inputs; the experts are off its best weights."""
    space = space_of(noise, seed=3)
    rng = np.random.default_rng(4)
    inputs, truth = rng.normal(size=(40, 9)), rng.normal(size=(20, 9))

    def score(x: Vector) -> tuple[float, Vector]:
        outputs = np.tanh(inputs @ x[:180].reshape(20, 9).T / 3)
        cases = -((outputs - np.tanh(inputs @ truth.T / 3)) ** 2).mean(1)
        return float(cases.mean()), cases

    strategy = Pursuit(seed=0, starts=["start"], popsize=8, sigma=0.05)
    means, centres = [], list[float]()
    for _ in range(24):
        candidates = strategy.ask()
        outcomes = told(candidates, space, score)
        strategy.tell(outcomes)
        values = [float(o.fitness[0]) for o in outcomes if o.fitness is not None]
        if candidates[0].genome.own is None:
            centres.append(values[0])
        else:
            means.append(np.mean(values))
    assert np.mean(means[-len(means) // 4 :]) > np.mean(means[: len(means) // 4])
    assert (np.diff(centres) >= 0).all()
    best = strategy.recommend()[0]
    plan = plan_from_description(json.loads(json.dumps(space.plan(best).describe())))
    again, decoded = plan.weights(space.pool, dtype=torch.float32), space.decode(best)
    assert all(torch.equal(again[name].float(), decoded[name].float()) for name in SHAPES)


def test_of_a_step_and_a_third_of_it_the_better_is_taken() -> None:
    space = space_of(GaussianNoise("deltas"))
    score = quadratic_bowl(space)
    strategy = Pursuit(seed=0, starts=["start"], popsize=8, sigma=0.01, shrink=False)
    samples = strategy.ask()
    for generation in range(6):
        strategy.tell(told(samples, space, score))
        centre, *steps = strategy.ask()
        best = steps[generation % len(steps)]
        values = {centre.id: 0.5, best.id: 1.0}
        tried = [centre, *steps]
        strategy.tell([Outcome(c.id, np.array([values.get(c.id, 0.0)])) for c in tried])
        samples = strategy.ask()
        assert {c.genome.centre for c in samples} == {best.genome}
        assert len(steps) == (2 if generation else 3)


def by_genome(path: Path) -> tuple[float, Vector] | None:
    """Any function of the genome alone that has some failures."""
    number = stable_seed(json.dumps(path.to_json())) % 11
    return None if number == 3 else (float(number), np.array([number, number / 2.0, 1.0]))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"antithetic": True},
    {"shrink": False, "popsize": 5},
    {"most": 48},
    {"starts": ["start", "base"]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_order_of_telling_changes_nothing_and_a_replay_goes_on(options: dict[str, Any]) -> None:
    options = {"starts": ["start"], **options}
    one, other = Pursuit(seed=1, **options), Pursuit(seed=1, **options)
    history: list[list[Outcome]] = []
    numbers = []
    for generation in range(8):
        candidates = one.ask()
        numbers += [c.genome.own for c in candidates if c.genome.own]
        outcomes = [
            Outcome(c.id, None)
            if (s := by_genome(c.genome)) is None
            else Outcome(c.id, np.array([s[0]]), s[1])
            for c in candidates
        ]
        assert [c.genome for c in other.ask()] == [c.genome for c in candidates]
        one.tell(outcomes)
        shuffled = np.random.default_rng(generation).permutation(len(outcomes))
        other.tell([outcomes[i] for i in shuffled])
        history.append(outcomes)
        assert one.recommend() == other.recommend()
    assert len(numbers) == len(set(numbers))
    resumed = Pursuit(seed=1, **options)
    for outcomes in history:
        resumed.ask()
        resumed.tell(outcomes)
    assert [c.genome for c in resumed.ask()] == [c.genome for c in one.ask()]


def test_failures_keep_the_centre() -> None:
    strategy = Pursuit(seed=0, starts=["start"])
    for _ in range(4):
        candidates = strategy.ask()
        strategy.tell([Outcome(c.id, None) for c in candidates])
    assert strategy.recommend() == []
    assert {c.genome.centre for c in strategy.ask()} == {Path("start")}


def test_a_population_of_noise_grows_to_its_limit_and_moves_nothing() -> None:
    rng = np.random.default_rng(0)
    strategy = Pursuit(seed=0, starts=["start"], popsize=4, most=20)
    sizes = []
    for _ in range(12):
        candidates = strategy.ask()
        sizes.append(len(candidates))
        cases = rng.normal(size=(len(candidates), 40))
        strategy.tell(
            [
                Outcome(c.id, np.array([row.mean()]), row)
                for c, row in zip(candidates, cases, strict=True)
            ]
        )
    assert max(sizes) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": []}, "starts must be a list of different names"),
        ({"popsize": 1}, "popsize must be at least 2, got 1"),
        ({"popsize": 8, "most": 6}, "most must be at least 8, got 6"),
        ({"antithetic": True, "popsize": 5}, "antithetic pairs need an even popsize, got 5"),
        ({"sigma": 0.0}, "sigma must be a finite number above 0, got 0"),
        ({"step": -1.0}, "step must be a finite number above 0, got -1"),
    ],
    ids=str,
)
def test_options_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pursuit(seed=0, **{"starts": ["start"], **options})
