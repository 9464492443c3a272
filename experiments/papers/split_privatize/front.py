"""Privacy and accuracy of all points, over seeds, and what they decide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from experiments.papers.split_privatize.attackers import (
    AWARE,
    CLEAN,
    LIKELIEST,
    NEAREST,
    NOISED,
)
from experiments.papers.split_privatize.points import NO_NOISE, FrontPoint
from merging.arrays import Vector

Found: TypeAlias = Mapping[FrontPoint, Mapping[str, Any]]

SEEING = (NEAREST, CLEAN, NOISED, LIKELIEST, AWARE)
"""Attackers that see the states."""


@dataclass(frozen=True, eq=False)
class FrontRow:
    """One split with one amount of noise, over its seeds.

    Args:
        accuracy: ``(seeds,)``; `success`: attacker to ``(seeds,)``; `own`: accuracy of the
            customer's own classifier on clean states, ``(seeds,)``; None: it has none.
    """

    blocks: int
    way: str
    ratio: float
    seeds: Sequence[int]
    accuracy: Vector
    success: Mapping[str, Vector]
    own: Vector | None = None

    @property
    def privacy(self) -> Vector:
        """Returns ``(seeds,)`` empirical privacy against the strongest attacker of each seed."""
        return self.against(*(name for name in SEEING if name in self.success))

    @property
    def papers(self) -> Vector:
        """The same against the paper's attacker: nearest neighbour, behind blocks a classifier."""
        return self.against(NEAREST if self.blocks == 0 else CLEAN)

    @property
    def strongest(self) -> str:
        """Name of the attacker with the largest mean success."""
        return max((n for n in SEEING if n in self.success), key=lambda n: self.success[n].mean())

    def against(self, *attackers: str) -> Vector:
        """Returns ``(seeds,)`` 1 - the largest success of these attackers."""
        return np.asarray(1 - np.max([self.success[name] for name in attackers], axis=0))


class Front:
    """All rows, each beside the unprotected split of its depth."""

    def __init__(self, found: Found) -> None:
        self.seeds = len({point.seed for point in found})
        settings = dict.fromkeys((p.blocks, p.way, p.ratio) for p in found)
        self.rows = sorted((_row(found, *each) for each in settings), key=lambda r: r.blocks)
        self.clean = {row.blocks: row for row in self.rows if row.way == NO_NOISE}
        self.noised = [row for row in self.rows if row.way != NO_NOISE]

    def gain(self, row: FrontRow) -> Vector:
        """Returns ``(seeds,)`` privacy above the unprotected split of the same depth and seed."""
        return row.privacy - self._beside(row, self.clean[row.blocks].privacy)

    def papers_gain(self, row: FrontRow) -> Vector:
        """The same against the paper's attacker alone."""
        return row.papers - self._beside(row, self.clean[row.blocks].papers)

    def loss(self, row: FrontRow) -> Vector:
        """Returns ``(seeds,)`` lost points of accuracy, in percent."""
        return 100 * (self._beside(row, self.clean[row.blocks].accuracy) - row.accuracy)

    def _beside(self, row: FrontRow, clean: Vector) -> Vector:
        """Returns what the unprotected split has of a row's seeds."""
        return clean[[self.clean[row.blocks].seeds.index(seed) for seed in row.seeds]]

    def most_private(self, most_loss: float) -> FrontRow | None:
        """Returns the row of the largest gain among those that lose no more; None: all do."""
        cheap = [row for row in self.noised if self.loss(row).mean() <= most_loss]
        return max(cheap, key=lambda row: float(self.gain(row).mean()), default=None)

    def cheapest(self, least_gain: float) -> FrontRow | None:
        """Returns the row of the least loss among those that gain as much; None: none does."""
        private = [row for row in self.noised if self.gain(row).mean() >= least_gain]
        return min(private, key=lambda row: float(self.loss(row).mean()), default=None)

    def advantage(self, way: str, over: str) -> Vector:
        """Returns ``(seeds,)`` how many points more accurate one way is than another.

        At equal privacy: both curves are drawn through their points and the unprotected split,
        linearly, and compared over the privacies that both have, then averaged over depths. A
        depth at which they share none is left out.
        """
        by_seed: dict[int, list[float]] = {}
        for blocks, clean in self.clean.items():
            for seed in clean.seeds:
                one, other = (self._curve(name, blocks, seed) for name in (way, over))
                low = max(one[0, 0], other[0, 0])
                high = min(one[0, -1], other[0, -1])
                if low < high:
                    at = np.linspace(low, high, 101)
                    a, b = (np.interp(at, *curve) for curve in (one, other))
                    by_seed.setdefault(seed, []).append(100 * float(np.mean(a - b)))
        return np.array([np.mean(values) for values in by_seed.values()])

    def _curve(self, way: str, blocks: int, seed: int) -> Vector:
        """Returns ``(2, points)`` privacies, rising, and accuracies."""
        rows = [
            self.clean[blocks],
            *(r for r in self.noised if (r.way, r.blocks) == (way, blocks)),
        ]
        at = [(row, row.seeds.index(seed)) for row in rows if seed in row.seeds]
        points = sorted((float(row.privacy[i]), float(row.accuracy[i])) for row, i in at)
        return np.array(points).T


def interval(values: Vector) -> tuple[float, float] | None:
    """Returns Student's 95 % interval of the mean over seeds; None: of fewer than two."""
    if len(values) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def spread(values: Vector, digits: int = 1, *, sign: bool = False) -> str:
    """Returns mean and 95 % interval over seeds."""
    kind = f"{'+' if sign else ''}.{digits}f"
    ends = interval(values)
    shown = format(float(values.mean()), kind)
    return shown if ends is None else f"{shown} [{ends[0]:{kind}}, {ends[1]:{kind}}]"


def _row(found: Found, blocks: int, way: str, ratio: float) -> FrontRow:
    of = {
        p.seed: figures
        for p, figures in found.items()
        if p == replace(p, blocks=blocks, way=way, ratio=ratio)
    }
    seeds = sorted(of)
    figures = [of[seed] for seed in seeds]
    success = {
        name: np.array([each["success"][name] for each in figures])
        for name in figures[0]["success"]
    }
    own = np.array([f["own"] for f in figures]) if "own" in figures[0] else None
    accuracy = np.array([f["accuracy"] for f in figures])
    return FrontRow(blocks, way, ratio, seeds, accuracy, success, own)
