"""95 % confidence intervals in closed form: of a mean, of a share, of an area under the curve."""

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from merging.arrays import Vector

_LEVEL = 0.95
_NORMAL = float(special.ndtri((1 + _LEVEL) / 2))
_HALVINGS = 60


def mean_interval(cases: Vector, low: float, high: float = math.inf) -> tuple[float, float] | None:
    """Returns an interval of the mean of ``(items,)``, skewed as the items are.

    Where all items are equal it is as wide as the exact interval of a share that was seen in none
    of them, beyond which a mean within the bounds could not have gone unnoticed.

    Args:
        low: least that an item can be; `high` likewise. The ends lie between the two.

    Returns:
        None for fewer than 2 items, or equal ones without both bounds: nothing is known.

    Source: Hall 1992, On the removal of skewness by transformation, JRSS B 54:221, section 2: of
        ``T = (mean - truth) / se`` it is ``g(T) = T + k T^2 / 3 + k^2 T^3 / 27 + k / 6`` that is
        distributed as Student's, ``k = skewness / sqrt(n)``. The skewness of few items is partly
        noise: it is shrunk by ``skewness^2 / (skewness^2 + 6 / n)``.
    """
    count = len(cases)
    if count < 2:
        return None
    mean, deviation = float(cases.mean()), float(cases.std())
    if deviation <= 1e-12 * (1 + abs(mean)):
        unseen = share_interval(0, count)[1]
        ends = mean - unseen * (mean - low), mean + unseen * (high - mean)
        return ends if math.isfinite(high - low) else None
    error = deviation / math.sqrt(count - 1)  # s / sqrt(n)
    skewness = float(((cases - mean) ** 3).mean()) / deviation**3
    skewness *= skewness**2 / (skewness**2 + 6 / count)
    quantile = float(special.stdtrit(count - 1, (1 + _LEVEL) / 2))  # t_{n - 1, 0.975}
    most, least = unskewed(np.array([quantile, -quantile]), skewness / math.sqrt(count))
    return max(low, mean - error * float(most)), min(high, mean - error * float(least))


def unskewed(quantiles: Vector, k: float) -> Vector:
    """Returns the T of skewed items with ``g(T)`` the quantiles of Student's T; see above.

    ``T = 3 / k (cbrt(1 + k (q - k / 6)) - 1)``, where k is the skewness over sqrt(n).
    """
    shifted = quantiles - k / 6
    bent: Vector = 3 / k * (np.cbrt(1 + k * shifted) - 1) if abs(k) > 1e-6 else shifted
    return bent


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
