"""The contract for every strategy, and what only some of them promise."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.spaces.axes import Choice, Real
from search.strategies.grid import GridSearch
from search.strategies.nevergrad_optimizer import NevergradStrategy, _Losses, _on_axis
from search.strategies.random_search import RandomSearch
from search.strategy import Outcome
from tests.search.strategies.contract import (
    AXES,
    STRATEGIES,
    Entry,
    StrategyContract,
    asked,
    asked_elsewhere,
    fitness,
    outcomes,
    start_of,
)

__all__ = ["asked_elsewhere"]


class TestStrategies(StrategyContract):
    @pytest.fixture(params=STRATEGIES, ids=lambda entry: entry.name)
    def entry(self, request: pytest.FixtureRequest) -> Entry:
        entry: Entry = request.param
        return entry


class TestNevergrad:
    @pytest.mark.parametrize("optimizer", ["CMA", "DE", "RealSpacePSO", "OnePlusOne", "NGOpt"])
    def test_first_candidate_is_the_start(self, optimizer: str) -> None:
        strategy = NevergradStrategy(axes=AXES, seed=0, optimizer=optimizer, popsize=4)
        genomes = [row[1:] for row in asked(strategy, 2)]
        assert genomes[0] == start_of(AXES)
        assert any(genome != start_of(AXES) for genome in genomes)

    @pytest.mark.parametrize("popsize", [2, 7])
    def test_cma_updates_after_every_generation_on_its_own_samples(self, popsize: int) -> None:
        strategy = NevergradStrategy(axes=AXES, seed=0, popsize=popsize)
        for generation in range(1, 6):
            candidates = strategy.ask()
            assert len(candidates) == popsize
            strategy.tell(outcomes(candidates))
            assert strategy._optimizer.es.countiter == generation
            assert not strategy._optimizer._to_be_asked

    @pytest.mark.parametrize("top", [-4.0, -16.0, -1000.0], ids=["some", "many", "all"])
    def test_ties_do_not_restart_cma(self, top: float) -> None:
        strategy = NevergradStrategy(axes=AXES, seed=0)
        for generation in range(1, 16):
            told = outcomes(
                strategy.ask(), lambda genome: np.minimum(fitness(genome) // 0.25, top)
            )
            strategy.tell(told)
            assert strategy._optimizer.es.countiter == generation

    def test_one_step_is_sigma_times_the_scale_of_the_axis(self) -> None:
        axes = (Real("narrow", start=3.0, scale=0.01), Real("wide", start=-1.0, scale=10.0))
        strategy = NevergradStrategy(axes=axes, seed=0, sigma=0.5, popsize=2000)
        genomes = np.array([candidate.genome for candidate in strategy.ask()])
        np.testing.assert_allclose(genomes.mean(axis=0), [3.0, -1.0], atol=0.3)
        np.testing.assert_allclose(genomes.std(axis=0), [0.005, 5.0], rtol=0.1)

    def test_start_on_a_bound_is_not_where_the_samples_pile_up(self) -> None:
        axes = (Real("density", 0.0, 1.0, start=1.0, scale=0.2), Real("free"))
        strategy = NevergradStrategy(axes=axes, seed=0, popsize=200)
        genomes = [candidate.genome[0] for candidate in strategy.ask()]
        assert genomes.count(1.0) == 1

    @pytest.mark.parametrize("optimizer", ["NelderMead", "Cobyla"])
    def test_optimizers_that_work_alone_get_generations_of_one(self, optimizer: str) -> None:
        strategy = NevergradStrategy(axes=AXES, seed=0, optimizer=optimizer)
        assert len(asked(strategy, 4)) == 4
        with pytest.raises(ValueError, match=f"{optimizer} evaluates one candidate at a time"):
            NevergradStrategy(axes=AXES, seed=0, optimizer=optimizer, popsize=2)

    def test_unknown_optimizer_names_close_ones(self) -> None:
        with pytest.raises(ValueError, match=r"no optimizer 'OnePlusOn'; close are .*OnePlusOne"):
            NevergradStrategy(axes=AXES, seed=0, optimizer="OnePlusOn")
        with pytest.raises(ValueError, match=r"nevergrad has no optimizer '§'$"):
            NevergradStrategy(axes=AXES, seed=0, optimizer="§")

    def test_options_without_meaning_are_refused(self) -> None:
        with pytest.raises(ValueError, match="the space has no axis"):
            NevergradStrategy(axes=(), seed=0)
        with pytest.raises(ValueError, match="sigma must be a finite number above 0, got 0"):
            NevergradStrategy(axes=AXES, seed=0, sigma=0)
        with pytest.raises(ValueError, match="popsize must be at least 2 with CMA, got 1"):
            NevergradStrategy(axes=AXES, seed=0, popsize=1)
        with pytest.raises(ValueError, match="budget must be at least 1, got 0"):
            NevergradStrategy(axes=AXES, seed=0, budget=0)

    def test_losses_of_failures_are_finite_and_worse_than_all_seen(self) -> None:
        losses = _Losses()
        alone = losses.of([Outcome(0, None)])
        assert math.isfinite(alone[0][0])
        mixed = losses.of([Outcome(1, None), Outcome(2, np.array([-5.0, 1.0]))])
        assert (mixed[0] > mixed[1]).all()
        later = losses.of([Outcome(3, None), Outcome(4, np.array([3.0, 3.0]))])
        assert (later[0] > [5.0, -1.0]).all()
        assert np.isfinite(later).all()

    def test_failing_half_space_is_avoided(self) -> None:
        axes = tuple(Real(f"w{i}") for i in range(4))
        strategy = NevergradStrategy(axes=axes, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(25):
                told = [
                    Outcome(c.id, None if c.genome[0] > 0 else -(c.genome**2).sum(keepdims=True))
                    for c in strategy.ask()
                ]
                strategy.tell(told)
        assert (strategy.recommend()[0] ** 2).sum() < 1e-2

    @given(
        low=st.floats(-10, 0),
        width=st.one_of(st.floats(1e-3, 10), st.just(math.inf)),
        place=st.floats(0, 1),
        steps=st.floats(-1e9, 1e9),
    )
    def test_mirror_keeps_to_the_axis(
        self, low: float, width: float, place: float, steps: float
    ) -> None:
        high = low + width
        begin = min(low + place * min(width, 1.0), high)
        axis = Real("x", low, high, start=begin, scale=0.7)
        assert low <= _on_axis(axis, steps) <= high
        assert _on_axis(axis, 0.0) == begin
        small = begin + 0.7 * 1e-4
        if small <= high:
            assert _on_axis(axis, 1e-4) == small
        mirrored = Real("x", -high, -low, start=-begin, scale=0.7)
        assert _on_axis(mirrored, -steps) == pytest.approx(-_on_axis(axis, steps), abs=1e-5)

    @settings(max_examples=5, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_any_seed_of_32_bits_works(self, seed: int) -> None:
        NevergradStrategy(axes=AXES, seed=seed).ask()


class TestRandomSearch:
    def test_distribution_follows_the_axes(self) -> None:
        axes = (
            Real("uniform", -2.0, 4.0),
            Real("normal", start=1.0, scale=0.5),
            Real("half", low=0.0, start=0.0, scale=1.0),
            Choice("method", ("a", "b")),
        )
        strategy = RandomSearch(axes=axes, seed=0, popsize=4000, sigma=2.0)
        genomes = np.array([candidate.genome for candidate in strategy.ask()])
        np.testing.assert_allclose(genomes[:, :2].mean(axis=0), [1.0, 1.0], atol=0.1)
        np.testing.assert_allclose(genomes[:, :2].std(axis=0), [math.sqrt(3), 1.0], rtol=0.05)
        assert genomes[:, 2].mean() == pytest.approx(2 * math.sqrt(2 / math.pi), rel=0.05)
        assert genomes[:, 3].mean() == pytest.approx(0.5, abs=0.05)

    def test_popsize_changes_no_genome(self) -> None:
        small, large = (RandomSearch(axes=AXES, seed=9, popsize=p) for p in (2, 6))
        assert asked(small, 6) == asked(large, 2)
        assert asked(small, 1) != asked(RandomSearch(axes=AXES, seed=8, popsize=2), 1)

    def test_options_without_meaning_are_refused(self) -> None:
        with pytest.raises(ValueError, match="popsize must be at least 1, got 0"):
            RandomSearch(axes=AXES, seed=0, popsize=0)
        with pytest.raises(ValueError, match="sigma must be a finite number above 0, got nan"):
            RandomSearch(axes=AXES, seed=0, sigma=math.nan)


class TestGrid:
    AXES = (
        Real("a", 0.0, 1.0, start=0.25),
        Real("b", start=1.0, scale=0.5),
        Choice("c", ("x", "y")),
    )

    def test_factorial_grid_is_every_combination_in_order(self) -> None:
        strategy = GridSearch(axes=self.AXES, seed=0, levels=3, reach=2.0, popsize=5)
        expected = [
            [a, b, c] for a in (0.0, 0.5, 1.0) for b in (0.0, 1.0, 2.0) for c in (0.0, 1.0)
        ]
        assert [row[1:] for row in asked(strategy, score=lambda genome: genome[:1])] == expected
        assert strategy.ask() == []
        assert strategy.ask() == []

    def test_coordinate_grid_moves_one_axis_at_a_time(self) -> None:
        strategy = GridSearch(axes=self.AXES, seed=0, levels=2, mode="coordinate", reach=1.0)
        expected = [[0.0, 1, 0], [1, 1, 0], [0.25, 0.5, 0], [0.25, 1.5, 0], [0.25, 1, 1]]
        assert [row[1:] for row in asked(strategy, score=lambda genome: genome[:1])] == [
            [0.25, 1.0, 0.0],
            *expected,
        ]

    def test_too_large_a_grid_is_refused_with_its_size(self) -> None:
        axes = tuple(Real(f"w{i}") for i in range(30))
        with pytest.raises(
            ValueError, match=rf"the grid has {3**30} points, more than limit=10000"
        ):
            GridSearch(axes=axes, seed=0)
        assert GridSearch(axes=axes, seed=0, mode="coordinate").size == 61

    def test_options_without_meaning_are_refused(self) -> None:
        with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
            GridSearch(axes=AXES, seed=0, levels=0)
        with pytest.raises(ValueError, match="reach must be a finite number above 0, got -1"):
            GridSearch(axes=AXES, seed=0, reach=-1)
        with pytest.raises(
            ValueError, match="mode must be 'factorial' or 'coordinate', got 'all'"
        ):
            GridSearch(axes=AXES, seed=0, mode="all")  # type: ignore[arg-type]

    def test_finds_the_best_point(self) -> None:
        strategy = GridSearch(axes=AXES, seed=0, levels=3, popsize=100)
        asked(strategy, 10)
        every = GridSearch(axes=AXES, seed=0, levels=3, popsize=10_000).ask()
        best = max(every, key=lambda candidate: fitness(candidate.genome)[0])
        assert strategy.recommend()[0].tolist() == best.genome.tolist()
