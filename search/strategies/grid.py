"""Grid search: the same levels on every axis, all combinations or one axis at a time."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from merging.arrays import Vector
from merging.spaces.axes import Axis, Choice, start
from search.checks import check_at_least, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome


class GridSearch:
    """Every point of a grid once, in a fixed order; after the last one `ask` returns nothing.

    Args:
        axes: what each number of a genome means; a choice contributes all its options.
        seed: taken like by every strategy and without effect: the grid is the same for all seeds.
        levels: values per real axis, evenly spaced with both ends included; 1: the start alone.
        mode: ``factorial``: all combinations, the last axis running fastest; ``coordinate``: the
            start point, then one axis after the other over its levels, the rest at the start.
        reach: how far an unbounded side extends from the start, in units of the axis' own scale.
        popsize: candidates per generation; changes no genome.
        limit: most points that the grid may have.
    """

    compares_generations = False

    def __init__(
        self,
        *,
        axes: tuple[Axis, ...],
        seed: int,
        levels: int = 3,
        mode: Literal["factorial", "coordinate"] = "factorial",
        reach: float = 2.0,
        popsize: int = 8,
        limit: int = 10_000,
    ) -> None:
        check_at_least(1, levels=levels, popsize=popsize)
        check_positive(reach=reach)
        if mode not in ("factorial", "coordinate"):
            raise ValueError(f"mode must be 'factorial' or 'coordinate', got {mode!r}")
        self._start = start(axes)
        self._levels = [_levels(axis, levels, reach) for axis in axes]
        self._mode, self._popsize = mode, popsize
        self._steps = [
            (axis, value)
            for axis, values in enumerate(self._levels)
            for value in values
            if value != self._start[axis]
        ]
        if self.size > limit:
            raise ValueError(
                f"the grid has {self.size} points, more than limit={limit}; take fewer levels, "
                "coarser groups or mode 'coordinate', or raise limit"
            )
        self._ask_tell = AskTell[Vector](np.ndarray.copy)

    @property
    def size(self) -> int:
        """How many points the grid has."""
        if self._mode == "coordinate":
            return 1 + len(self._steps)
        return math.prod(len(values) for values in self._levels)

    def ask(self) -> list[Candidate[Vector]]:
        """Returns the next points; none when the grid is exhausted."""
        self._ask_tell.check_told()
        first = self._ask_tell.generations * self._popsize
        stop = min(first + self._popsize, self.size)
        return self._ask_tell.ask([self._genome(i) for i in range(first, stop)])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Remembers the best; the points to come do not depend on it."""
        self._ask_tell.tell(outcomes)

    def recommend(self) -> list[Vector]:
        """Returns the best genome told, or the non-dominated ones."""
        return self._ask_tell.best

    def _genome(self, point: int) -> Vector:
        if self._mode == "coordinate":
            genome = self._start.copy()
            if point > 0:
                axis, value = self._steps[point - 1]
                genome[axis] = value
            return genome
        levels = np.unravel_index(point, [len(values) for values in self._levels])
        return np.array(
            [values[level] for values, level in zip(self._levels, levels, strict=True)], np.float64
        )


def _levels(axis: Axis, levels: int, reach: float) -> Vector:
    if isinstance(axis, Choice):
        return np.arange(len(axis.options), dtype=np.float64)
    if levels == 1:
        return np.array([axis.start])
    low = axis.low if math.isfinite(axis.low) else axis.start - reach * axis.scale
    high = axis.high if math.isfinite(axis.high) else axis.start + reach * axis.scale
    return np.unique(np.clip(np.linspace(low, high, levels), axis.low, axis.high))
