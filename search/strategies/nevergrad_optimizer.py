"""Any optimizer of nevergrad by its name: CMA-ES, differential evolution, NGOpt, 500 more."""

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import nevergrad as ng
import numpy as np

from merging.arrays import Vector
from merging.spaces.axes import Axis, Choice, Real
from search.checks import check_at_least, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome

_FIRST_FAILURE = 1e15
"""Loss of a failure before any finite loss is known; nevergrad clips losses above 5e20."""

_UNKNOWN_BUDGET = 100
"""What optimizers plan for that cannot do without a budget; NGOpt fails an assertion."""


class NevergradStrategy:
    """Asks and tells one of nevergrad's optimizers, generation by generation.

    The optimizer sees every real axis as an unbounded number z around 0 with step 1, and the
    genome is ``start + sigma * scale * z``, mirrored at the axis' bounds: a start that lies on a
    bound (a density of 1) is then a point like any other, where clipping would put half of all
    samples on it. A choice is its options' weights, of which the largest wins.

    Args:
        seed: of the optimizer's generator.
        optimizer: name in ``nevergrad.optimizers.registry``; see
            https://facebookresearch.github.io/nevergrad/optimizers_ref.html
        popsize: candidates per generation, and for CMA and DiagonalCMA also the population after
            which they update. None: ``4 + floor(3 ln axes)``, CMA-ES' default; 1 for optimizers
            that evaluate one candidate at a time.
        sigma: first step on real axes, in units of the axis' own scale.
        budget: evaluations to be expected, read by the optimizers that plan ahead (NGOpt); not a
            limit. None: unknown, they plan for 100.
        include_start: candidate 0 is the start point.

    Source: Rapin & Teytaud 2018, Nevergrad: a gradient-free optimization platform; Hansen 2016,
        The CMA evolution strategy: a tutorial, arXiv 1604.00772.
    """

    compares_generations = False

    def __init__(
        self,
        *,
        axes: tuple[Axis, ...],
        seed: int,
        optimizer: str = "CMA",
        popsize: int | None = None,
        sigma: float = 1.0,
        budget: int | None = None,
        include_start: bool = True,
    ) -> None:
        if not axes:
            raise ValueError("the space has no axis; there is nothing to search")
        check_positive(sigma=sigma)
        check_at_least(1, budget=budget)
        self._axes = tuple(axes)
        self._sigma = sigma
        self._name = optimizer
        self._include_start = include_start
        self._popsize = _popsize(optimizer, popsize, len(axes))
        self._ask_tell = AskTell[Vector](np.ndarray.copy)
        self._losses = _Losses()
        self._waiting: dict[int, Any] = {}
        self._numpy_state = np.random.RandomState(seed).get_state()
        with self._own_numpy():
            self._optimizer = _build(optimizer, self._axes, seed, self._popsize, budget)

    def ask(self) -> list[Candidate[Vector]]:
        """Returns the next generation of `popsize` candidates."""
        self._ask_tell.check_told()
        first = self._ask_tell.candidates
        asked = [self._ask_optimizer(first + i) for i in range(self._popsize)]
        candidates = self._ask_tell.ask([self._genome(one.value) for one in asked])
        self._waiting = {
            candidate.id: one for candidate, one in zip(candidates, asked, strict=True)
        }
        return candidates

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Tells the optimizer, in the order of ids; a failure is worse than all seen before."""
        self._tell_optimizer(self._ask_tell.tell(outcomes))

    @property
    def one_at_a_time(self) -> bool:
        """Whether the optimizer cannot be asked again before it is told."""
        return bool(ng.optimizers.registry[self._name].no_parallelization)

    def ask_one(self) -> Candidate[Vector]:
        """Returns the next candidate; see `search.loop.steady_state.SteadyStrategy`."""
        self._ask_tell.check_steady()
        asked = self._ask_optimizer(self._ask_tell.candidates)
        candidate = self._ask_tell.ask_one(self._genome(asked.value))
        self._waiting[candidate.id] = asked
        return candidate

    def tell_one(self, outcome: Outcome) -> None:
        """Tells the optimizer, which takes outcomes in any order; a failure as in `tell`."""
        self._ask_tell.tell_one(outcome)
        self._tell_optimizer([outcome])

    def _ask_optimizer(self, number: int) -> Any:
        """Returns what nevergrad asks as candidate `number`."""
        with self._own_numpy():
            if self._include_start and number == 0:
                self._optimizer.suggest(_start_value(self._axes))
            asked = self._optimizer.ask()
            if self._include_start and self._name in _CMA and number == self._popsize - 1:
                # CMA samples whole generations. The start took one place in the first; the sample
                # left over would otherwise come first in the next, and so on in every one.
                self._optimizer.ask()
        return asked

    def _tell_optimizer(self, outcomes: Sequence[Outcome]) -> None:
        losses = self._losses.of(outcomes)
        with self._own_numpy():
            for outcome, loss in zip(outcomes, losses, strict=True):
                asked = self._waiting.pop(outcome.id)
                self._optimizer.tell(asked, loss[0] if len(loss) == 1 else loss)

    def recommend(self) -> list[Vector]:
        """Returns the best genome told, or the non-dominated ones: no model's guess."""
        return self._ask_tell.best

    def _genome(self, value: tuple[Any, ...]) -> Vector:
        reals, options = iter(value[0]), iter(value[1:])
        return np.array(
            [
                float(next(options))
                if isinstance(axis, Choice)
                else _on_axis(axis, self._sigma * float(next(reals)))
                for axis in self._axes
            ],
            np.float64,
        )

    @contextmanager
    def _own_numpy(self) -> Iterator[None]:
        """Some optimizers draw from NumPy's global generator; lends them one of their own."""
        outside = np.random.get_state()
        np.random.set_state(self._numpy_state)
        try:
            yield
        finally:
            self._numpy_state = np.random.get_state()
            np.random.set_state(outside)


_CMA = {"CMA": False, "DiagonalCMA": True}
"""Optimizers that are built with their population size, and whether they are diagonal."""


def _popsize(optimizer: str, popsize: int | None, axes: int) -> int:
    registry = ng.optimizers.registry
    if optimizer not in registry:
        near = difflib.get_close_matches(optimizer, list(registry), n=5, cutoff=0.5)
        hint = f"; close are {', '.join(near)}" if near else ""
        raise ValueError(f"nevergrad has no optimizer {optimizer!r}{hint}")
    alone = registry[optimizer].no_parallelization
    if popsize is None:
        return 1 if alone else 4 + int(3 * math.log(axes))
    least = 2 if optimizer in _CMA else 1
    if popsize < least:
        raise ValueError(f"popsize must be at least {least} with {optimizer}, got {popsize}")
    if alone and popsize > 1:
        raise ValueError(
            f"{optimizer} evaluates one candidate at a time; popsize must be 1 or null, "
            f"got {popsize}"
        )
    return popsize


def _build(
    name: str, axes: tuple[Axis, ...], seed: int, popsize: int, budget: int | None
) -> ng.optimizers.base.Optimizer:
    parametrization = ng.p.Tuple(
        ng.p.Array(shape=(_reals(axes),)),
        *(
            ng.p.Choice(len(axis.options), deterministic=True)
            for axis in axes
            if isinstance(axis, Choice)
        ),
    )
    parametrization.random_state = np.random.RandomState(seed)
    if name in _CMA:
        # Scores that count items tie often. By default pycma restarts after two generations with
        # equal leaders, from the start point and without what it learned; see
        # test_ties_do_not_restart_cma.
        patient = {"tolflatfitness": 10**9, "tolfun": 0.0, "tolfunhist": 0.0}
        family = ng.optimizers.ParametrizedCMA(
            popsize=popsize, diagonal=_CMA[name], inopts=patient
        )
    else:
        family = ng.optimizers.registry[name]
    return family(parametrization, budget=budget or _UNKNOWN_BUDGET, num_workers=popsize)


def _reals(axes: tuple[Axis, ...]) -> int:
    """Returns how many real numbers nevergrad sees, some of which nobody may read.

    Its CMA and NGOpt break on one dimension, and an empty array is no parameter.
    """
    reals = sum(isinstance(axis, Real) for axis in axes)
    return max(reals, 2 if reals == len(axes) else 1)


def _start_value(axes: tuple[Axis, ...]) -> tuple[Any, ...]:
    options = [axis.start for axis in axes if isinstance(axis, Choice)]
    return (np.zeros(_reals(axes)), *options)


def _on_axis(axis: Real, steps: float) -> float:
    """Returns ``start + steps * scale``, mirrored at the bounds as often as needed."""
    value = axis.start + axis.scale * steps
    width = axis.high - axis.low
    if math.isfinite(width):
        beyond = (value - axis.low) % (2 * width) if width else 0.0
        if not axis.low <= value <= axis.high:
            value = axis.low + min(beyond, 2 * width - beyond)
        return min(max(value, axis.low), axis.high)
    if value < axis.low:
        return 2 * axis.low - value
    return 2 * axis.high - value if value > axis.high else value


class _Losses:
    """Turns fitness (higher is better, None: failed) into finite losses for nevergrad."""

    def __init__(self) -> None:
        self._seen: list[Vector] = []

    def of(self, outcomes: Sequence[Outcome]) -> list[Vector]:
        """Returns ``(objectives,)`` per outcome; a failure is worse in every objective."""
        self._seen += [-outcome.fitness for outcome in outcomes if outcome.fitness is not None]
        if self._seen:
            worst, best = np.max(self._seen, axis=0), np.min(self._seen, axis=0)
            self._seen = [worst, best]
            failure = worst + np.maximum(worst - best, 1.0)
        else:
            failure = np.array([_FIRST_FAILURE])
        return [failure if o.fitness is None else -o.fitness for o in outcomes]
