"""Random search: independent samples, the baseline that every strategy has to beat."""

import math
from collections.abc import Sequence

import numpy as np

from merging.arrays import Vector
from merging.spaces.axes import Axis, Choice, start
from search.checks import check_at_least, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome


class RandomSearch:
    """Uniform between the bounds of an axis; normal around its start where it has none.

    A one-sided axis takes the normal sample's distance from the start mirrored at its bound.

    Args:
        seed: with the candidate's id, decides its genome.
        popsize: candidates per generation; changes no genome.
        sigma: standard deviation on unbounded axes, in units of the axis' own scale.
        include_start: candidate 0 is the start point.
    """

    compares_generations = False
    one_at_a_time = False

    def __init__(
        self,
        *,
        axes: tuple[Axis, ...],
        seed: int,
        popsize: int = 8,
        sigma: float = 1.0,
        include_start: bool = True,
    ) -> None:
        check_at_least(1, popsize=popsize)
        check_positive(sigma=sigma)
        self._axes = tuple(axes)
        self._seed = seed
        self._popsize = popsize
        self._sigma = sigma
        self._include_start = include_start
        self._ask_tell = AskTell[Vector](np.ndarray.copy)

    def ask(self) -> list[Candidate[Vector]]:
        """Returns the next `popsize` samples."""
        first = self._ask_tell.generations * self._popsize
        return self._ask_tell.ask([self._genome(first + i) for i in range(self._popsize)])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Remembers the best; the samples to come do not depend on it."""
        self._ask_tell.tell(outcomes)

    def ask_one(self) -> Candidate[Vector]:
        """Returns the next sample; see `search.loop.steady_state.SteadyStrategy`."""
        return self._ask_tell.ask_one(self._genome(self._ask_tell.candidates))

    def tell_one(self, outcome: Outcome) -> None:
        """Remembers the best."""
        self._ask_tell.tell_one(outcome)

    def recommend(self) -> list[Vector]:
        """Returns the best genome told, or the non-dominated ones."""
        return self._ask_tell.best

    def _genome(self, candidate_id: int) -> Vector:
        if candidate_id == 0 and self._include_start:
            return start(self._axes)
        rng = np.random.default_rng([self._seed, candidate_id])
        return np.array([_sample(axis, rng, self._sigma) for axis in self._axes], np.float64)


def _sample(axis: Axis, rng: np.random.Generator, sigma: float) -> float:
    if isinstance(axis, Choice):
        return float(rng.integers(len(axis.options)))
    if math.isfinite(axis.low) and math.isfinite(axis.high):
        return min(max(float(rng.uniform(axis.low, axis.high)), axis.low), axis.high)
    value = float(rng.normal(axis.start, sigma * axis.scale))
    if value < axis.low:
        return 2 * axis.low - value
    return 2 * axis.high - value if value > axis.high else value
