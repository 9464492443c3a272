"""Subspace evolution: what it promises as a strategy, and where it looks."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from merging.arrays import Vector
from merging.paths.noise import GaussianNoise
from merging.paths.path import Path
from merging.paths.singular_pairs import SingularPairNoise
from merging.plans import plan_from_description
from merging.seeding import stable_seed
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from search.strategies.subspace import SubspaceEvolution
from search.strategy import Candidate, Outcome
from tests.merging.memory_pool import random_pool

SHAPES = {"w": (8, 9), "v": (5, 8), "bias": (6,)}


def by_genome(candidate: Candidate[Path]) -> Outcome:
    """Any function of the genome alone that has some ties and failures."""
    number = stable_seed(json.dumps(candidate.genome.to_json())) % 11
    return Outcome(candidate.id, None if number == 3 else np.array([float(number // 2)]))


def numbers(candidates: list[Candidate[Path]]) -> set[int]:
    return {number for c in candidates for number, _ in (c.genome.steps or [()])[-1]}


def test_a_stalled_subspace_is_left_for_a_larger_one_around_the_best() -> None:
    strategy = SubspaceEvolution(seed=0, starts=["start"], dimensions=4, patience=2, growth=2.0)
    first = strategy.ask()
    assert first[0].genome == Path("start")
    assert numbers(first) == set(range(4))
    strategy.tell([Outcome(c.id, np.array([float(c.id == 3)])) for c in first])
    best = first[3].genome
    for _ in range(2):  # nothing better
        strategy.tell([Outcome(c.id, np.array([0.5])) for c in strategy.ask()])
    second = strategy.ask()
    assert second[0].genome == best
    assert numbers(second[1:]) == set(range(4, 12))
    assert {c.genome.steps[:-1] for c in second[1:]} == {best.steps}
    assert strategy.recommend() == [best]


def test_a_subspace_that_brought_nothing_is_followed_by_shorter_steps() -> None:
    strategy = SubspaceEvolution(seed=0, starts=["start"], dimensions=6, patience=2)
    lengths: dict[int, list[float]] = {}
    for _ in range(9):
        asked = strategy.ask()
        for candidate in asked:
            for number, length in (candidate.genome.steps or [()])[-1]:
                lengths.setdefault(number // 6, []).append(abs(length))
        # candidate 0, the start, stays the best
        strategy.tell([Outcome(c.id, np.array([-float(c.id > 0)])) for c in asked])
    means = [np.mean(lengths[i]) for i in sorted(lengths)]
    assert len(means) > 2
    assert all(0.1 < b / a < 0.5 for a, b in pairwise(means))


def test_order_of_telling_changes_nothing_and_a_replay_goes_on() -> None:
    one, other = (
        SubspaceEvolution(seed=1, starts=["start"], dimensions=3, patience=1) for _ in range(2)
    )
    history = []
    for generation in range(8):
        candidates = one.ask()
        assert [c.genome for c in other.ask()] == [c.genome for c in candidates]
        outcomes = [by_genome(candidate) for candidate in candidates]
        one.tell(outcomes)
        shuffled = np.random.default_rng(generation).permutation(len(outcomes))
        other.tell([outcomes[i] for i in shuffled])
        history.append(outcomes)
        assert one.recommend() == other.recommend()
    resumed = SubspaceEvolution(seed=1, starts=["start"], dimensions=3, patience=1)
    for outcomes in history:
        resumed.ask()
        resumed.tell(outcomes)
    assert [c.genome for c in resumed.ask()] == [c.genome for c in one.ask()]


@pytest.mark.parametrize("noise", [SingularPairNoise(), GaussianNoise("deltas")], ids=str)
def test_climbs_and_its_winner_rebuilds_from_its_recipe(noise: Any) -> None:
    pool = random_pool(SHAPES, seed=1)
    space = FullWeightSpace(pool, noise, initial=weighted_start(pool, [0.4, 0.3, 0.3]), seed=2)
    away = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
        for name, tensor in space.decode(Path("start")).items()
    }

    def fitness(path: Path) -> Vector:
        weights = space.decode(path)
        return np.array([-sum(float(((weights[n] - away[n]) ** 2).sum()) for n in SHAPES)])

    strategy = SubspaceEvolution(seed=0, starts=["start"], dimensions=12, patience=4)
    means = []
    for _ in range(32):
        outcomes = [Outcome(c.id, fitness(c.genome)) for c in strategy.ask()]
        strategy.tell(outcomes)
        means.append(np.mean([o.fitness for o in outcomes]))
    assert np.mean(means[-8:]) > np.mean(means[:8])
    best = strategy.recommend()[0]
    assert fitness(best)[0] > 0.95 * fitness(Path("start"))[0]
    plan = plan_from_description(json.loads(json.dumps(space.plan(best).describe())))
    again, decoded = plan.weights(pool, dtype=torch.float32), space.decode(best)
    assert all(torch.equal(again[name], decoded[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": ["a", "b"]}, "a subspace lies around one point, starts must name one"),
        ({"dimensions": 1}, "dimensions must be at least 2, got 1"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"growth": 0.5}, "growth must be at least 1, got 0.5"),
        ({"sigma": 0.0}, "sigma must be a finite number above 0, got 0"),
    ],
    ids=str,
)
def test_options_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SubspaceEvolution(seed=0, **{"starts": ["start"], **options})
