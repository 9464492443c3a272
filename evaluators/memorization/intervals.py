"""95 % confidence intervals in closed form: of a mean, of a share, of an area under the curve."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import special

from merging.arrays import Vector

_LEVEL = 0.95
_NORMAL = float(special.ndtri((1 + _LEVEL) / 2))
_HALVINGS = 60


def mean_interval(cases: Vector) -> tuple[float, float] | None:
    """Returns Student's interval of the mean of ``(items,)``; None for fewer than 2 items."""
    count = len(cases)
    if count < 2:
        return None
    half = float(special.stdtrit(count - 1, (1 + _LEVEL) / 2))
    half *= float(cases.std(ddof=1)) / math.sqrt(count)
    mean = float(cases.mean())
    return mean - half, mean + half


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Returns the exact interval of a share of `hits` in `count`.

    Source: Clopper and Pearson 1934: the shares at which so many hits, or so few, have 2.5 %.
    """
    tail = (1 - _LEVEL) / 2
    low = float(special.betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return low, high


def auc_interval(auc: float, members: int, others: int) -> tuple[float, float]:
    """Returns the interval of an area under the curve; it has a width at 0 and 1 as well.

    The ends solve ``|auc - t| = z sqrt(V(t))`` with Hanley and McNeil's variance
    ``V(t) = t (1 - t) (1 + (n - 1) ((1 - t) / (2 - t) + t / (1 + t))) / (members * others)``,
    ``n = (members + others) / 2``.

    Source: Newcombe 2006, Confidence intervals for an effect size measure based on the
        Mann-Whitney statistic, part 2, Statistics in Medicine 25:559, method 5.
    """
    mean = (members + others) / 2

    def off(t: float) -> float:
        inner = 1 + (mean - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return abs(auc - t) - _NORMAL * math.sqrt(t * (1 - t) * inner / (members * others))

    return _root(off, 0.0, auc, auc), _root(off, auc, 1.0, auc)


def _root(off: Callable[[float], float], low: float, high: float, inside: float) -> float:
    """Returns where `off` changes its sign between `low` and `high`; negative at `inside`."""
    outside = low if inside == high else high
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if off(middle) <= 0:
            inside = middle
        else:
            outside = middle
    return inside
