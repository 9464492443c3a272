"""Grid search: the same levels on every axis, all combinations or one axis at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from merging.arrays import Vector
from merging.spaces.axes import Axis, Choice, start
from search.loop.journal import Journal, replay
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

    Raises:
        ValueError: an option has no meaning, or the grid has more than `limit` points.
    """

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
        for name, number in (("levels", levels), ("popsize", popsize)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not (math.isfinite(reach) and reach > 0):
            raise ValueError(f"reach must be a finite number above 0, got {reach}")
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
                "coarser groups or mode=coordinate, or raise limit"
            )
        self._journal = Journal()

    @property
    def size(self) -> int:
        """How many points the grid has."""
        if self._mode == "coordinate":
            return 1 + len(self._steps)
        return math.prod(len(values) for values in self._levels)

    def ask(self) -> list[Candidate[Vector]]:
        """Returns the next points; none when the grid is exhausted."""
        self._journal.check_told()
        first = self._journal.asked * self._popsize
        stop = min(first + self._popsize, self.size)
        return self._journal.ask([self._genome(i) for i in range(first, stop)])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Remembers the best; the points to come do not depend on it."""
        self._journal.tell(outcomes)

    def recommend(self) -> list[Vector]:
        """Returns the best genome told, or the non-dominated ones."""
        return self._journal.best

    def state_dict(self) -> dict[str, Any]:
        """Returns the outcomes told, as JSON values."""
        return self._journal.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replays the outcomes of `state`."""
        self._journal = Journal()
        replay(state, self.ask, self.tell)

    def _genome(self, point: int) -> Vector:
        if self._mode == "coordinate":
            genome = self._start.copy()
            if point > 0:
                axis, value = self._steps[point - 1]
                genome[axis] = value
            return genome
        places = np.unravel_index(point, [len(values) for values in self._levels])
        return np.array(
            [values[place] for values, place in zip(self._levels, places, strict=True)], np.float64
        )


def _levels(axis: Axis, levels: int, reach: float) -> Vector:
    if isinstance(axis, Choice):
        return np.arange(len(axis.options), dtype=np.float64)
    if levels == 1:
        return np.array([axis.start])
    low = axis.low if math.isfinite(axis.low) else axis.start - reach * axis.scale
    high = axis.high if math.isfinite(axis.high) else axis.start + reach * axis.scale
    return np.unique(np.clip(np.linspace(low, high, levels), axis.low, axis.high))
