"""DP-ZO: its step against a dense version, what it does with noise, and a strategy's promises."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from merging.arrays import Vector
from merging.paths.noise import GaussianNoise
from merging.paths.path import Path
from merging.seeding import stable_seed
from search.privacy.private_fitness import ClippedSum, noisy_differences
from search.privacy.private_noise import SecretNoise
from search.strategies.dp_zo import DpZo
from search.strategy import Outcome
from tests.search.strategies.test_mergevolve import (
    SIZE,
    by_genome,
    flat,
    space_of,
    told,
    zero_space,
)

descent = partial(DpZo, seed=0, starts=["start"], phi=0.01, learning_rate=0.05)


def asked(strategy: DpZo, steps: int = 5) -> list[Any]:
    rows = []
    for _ in range(steps):
        candidates = strategy.ask()
        rows += [[candidate.id, candidate.genome.to_json()] for candidate in candidates]
        if candidates:
            strategy.tell(told(candidates, by_genome))
    return rows


class TestStep:
    def test_it_equals_a_dense_version(self) -> None:
        """theta += lr decay^t (f+ - f-) / (2 phi) u_t, whole vectors in float64."""
        space, target = space_of(4), np.random.default_rng(2).normal(size=SIZE)

        def score(theta: Vector) -> float:
            return -float(((theta - target) ** 2).mean())

        strategy = descent(decay=0.9)
        theta = flat(space.decode(Path("start")))
        for step in range(6):
            strategy.tell(told(strategy.ask(), lambda path: score(flat(space.decode(path)))))
            noises = [
                GaussianNoise().on(n, space.pool)(stable_seed("noise", 4, step)) for n in SHAPED
            ]
            u = np.concatenate([noise.double().numpy().ravel() for noise in noises])
            slope = (score(theta + 0.01 * u) - score(theta - 0.01 * u)) / 0.02
            theta = theta + 0.05 * 0.9**step * slope * u
        (centre,) = strategy.recommend()
        assert centre.own is None
        np.testing.assert_allclose(flat(space.decode(centre)), theta, rtol=1e-3, atol=1e-4)

    def test_it_descends_also_through_clipped_and_noised_differences(self) -> None:
        """On a sphere of items: nearer to the optimum than the start, with and without noise."""
        rng = np.random.default_rng(0)
        targets = 0.5 + 0.1 * rng.normal(size=(40, SIZE))

        def final(sigma: float) -> float:
            space = zero_space(3)
            strategy = descent(starts=["base"], phi=0.01, learning_rate=0.4)
            mechanism = ClippedSum(0.05, sigma, SecretNoise(bytes(16)))
            for step in range(60):
                pair = strategy.ask()
                plus, minus = (
                    -((flat(space.decode(c.genome)) - targets) ** 2).mean(1) for c in pair
                )
                ((up, down),) = noisy_differences([(plus, minus)], 40.0, mechanism, (step,))
                strategy.tell(
                    [Outcome(c.id, np.array([v])) for c, v in zip(pair, (up, down), strict=True)]
                )
            (centre,) = strategy.recommend()
            return float(((flat(space.decode(centre)) - 0.5) ** 2).mean())

        start = 0.25
        assert final(1e-8) < 0.75 * start
        assert final(1.0) < 0.9 * start

    def test_directions_do_not_depend_on_what_is_told(self) -> None:
        one, other = descent(), descent()
        for fitness in (1.0, -3.0, 0.5):
            for strategy, sign in ((one, 1.0), (other, -1.0)):
                pair = strategy.ask()
                numbers = [c.genome.own for c in pair]
                strategy.tell([Outcome(c.id, np.array([sign * fitness * c.id])) for c in pair])
            assert numbers[0] is not None
            assert numbers[1] is not None
            assert numbers[0][0] == numbers[1][0]
            assert numbers[0][1] == -numbers[1][1]

    def test_a_failed_side_moves_nothing_and_the_next_direction_is_another(self) -> None:
        strategy = descent()
        first = strategy.ask()
        strategy.tell([Outcome(0, np.array([1.0])), Outcome(1, None)])
        second = strategy.ask()
        assert second[0].genome.centre == first[0].genome.centre == Path("start")
        assert second[0].genome.own != first[0].genome.own

    def test_it_ends_after_its_steps(self) -> None:
        strategy = descent(steps=3)
        assert len(asked(strategy, 5)) == 6
        assert strategy.ask() == []


SHAPED = sorted(space_of(4).pool.names, key=list(space_of(4).pool.names).index)


class TestPromises:
    def test_ids_count_from_zero_and_pairs_are_whole(self) -> None:
        rows = asked(descent())
        assert [row[0] for row in rows] == list(range(10))
        assert [row[1]["own"][0] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]

    def test_order_of_telling_changes_nothing(self) -> None:
        one, other = descent(), descent()
        for _ in range(4):
            outcomes = told(one.ask(), by_genome)
            other.ask()
            one.tell(outcomes)
            other.tell(outcomes[::-1])
            assert one.recommend() == other.recommend()

    def test_order_of_calls_and_ids_are_checked(self) -> None:
        strategy = descent()
        assert strategy.recommend() == []
        with pytest.raises(RuntimeError, match=r"tell\(\) was called before ask\(\)"):
            strategy.tell([])
        candidates = strategy.ask()
        with pytest.raises(RuntimeError, match=r"ask\(\) was called before candidates \[0, 1\]"):
            strategy.ask()
        with pytest.raises(ValueError, match=r"missing: \[0\]; never asked: \[77\]"):
            strategy.tell([Outcome(77, None), Outcome(1, None)])
        with pytest.raises(ValueError, match="candidate 0 has 2: choose an objective with one"):
            strategy.tell([Outcome(0, np.zeros(2)), Outcome(1, np.zeros(2))])
        strategy.tell(told(candidates, by_genome))

    def test_a_replayed_strategy_goes_on_as_one_never_stopped(self) -> None:
        whole, history = descent(), list[list[Outcome]]()
        for _ in range(4):
            resumed = descent()
            for earlier in history:
                resumed.ask()
                resumed.tell(earlier)
            candidates = whole.ask()
            assert [c.genome for c in resumed.ask()] == [c.genome for c in candidates]
            history.append(told(candidates, by_genome))
            whole.tell(history[-1])
            resumed.tell(history[-1])
            assert resumed.recommend() == whole.recommend()

    def test_global_generators_are_neither_read_nor_moved(self) -> None:
        np.random.seed(1)
        torch.manual_seed(1)
        first = asked(descent())
        assert np.random.rand() == np.random.RandomState(1).rand()
        assert asked(descent()) == first

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"phi": 0.0}, "phi must be a finite number above 0, got 0.0"),
            ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0"),
            ({"decay": 0.0}, "decay must be a finite number above 0"),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"starts": ["a", "b"]}, "DpZo starts from one point, starts must name one"),
            ({"starts": "start"}, "starts must name one, got 'start'"),
        ],
    )
    def test_options_are_refused_by_name(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            descent(**options)
