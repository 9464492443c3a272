"""95 % confidence intervals in closed form: of a mean, of a share, of an area under the curve."""

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
    half = float(special.stdtrit(count - 1, (1 + _LEVEL) / 2))  # t_{n - 1, 0.975}
    half *= float(cases.std(ddof=1)) / math.sqrt(count)  # t s / sqrt(n)
    mean = float(cases.mean())
    return mean - half, mean + half


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Returns the exact interval of a share of `hits` in `count`.

    Source: Clopper and Pearson 1934: the shares p at which ``P(X >= hits)``, or
        ``P(X <= hits)``, is 2.5 % for X ~ Binomial(count, p).
    """
    tail = (1 - _LEVEL) / 2
    # quantiles of Beta(k, n - k + 1) at 2.5 % and of Beta(k + 1, n - k) at 97.5 %
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
    n = (members + others) / 2

    def excess(t: float) -> float:
        factor = 1 + (n - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        variance = t * (1 - t) * factor / (members * others)  # V(t)
        return abs(auc - t) - _NORMAL * math.sqrt(variance)

    return _root(excess, auc, 0.0), _root(excess, auc, 1.0)


def _root(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """Returns by bisection where `excess` changes its sign; it is at most 0 at `inside`."""
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if excess(middle) <= 0:
            inside = middle
        else:
            outside = middle
    return inside
