"""Paired tests of a difference over items and seeds, and Holm's correction of many of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evaluators.intervals import unskewed
from merging.arrays import Vector

Gains = npt.NDArray[np.float64]
"""Per-item fitness of one task, ``(seeds, items)``."""

Over = Literal["items and seeds", "items", "seeds", "nothing"]
LEVEL = 0.95
DRAWS = 10_000


@dataclass(frozen=True, eq=False)
class GroupSample:
    """What one group is known by.

    Args:
        seeds: of its runs, ascending; empty for a single model that no seed has touched.
        fitness: ``(runs,)`` on the held-out items.
        gains: per task ``(runs, items)``, higher is better, in units of fitness: the fitness of a
            run is the sum over tasks of ``weight * mean``. None: the runs keep no per-item scores.
    """

    seeds: tuple[int, ...]
    fitness: Vector
    gains: tuple[Gains, ...] | None
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """First minus second: how much better the first is, and how sure that is.

    Args:
        low: lower end of the 95 % interval; None: nothing could be tested.
        p: two-sided; never below ``2 / (draws + 1)``.
        paired_seeds: the runs of equal seed were compared with each other.
    """

    effect: float
    low: float | None
    high: float | None
    p: float | None
    over: Over
    paired_seeds: bool


def difference(
    first: GroupSample, second: GroupSample, *, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Returns first minus second with its 95 % interval and two-sided p, over items and seeds.

    The observed difference is moved by what other items and other seeds would have given, each
    by Student's t with the standard error of its own, in every draw:

    - of every task ``w_t u s / sqrt(n)``, with s the standard deviation of the paired differences
      of its n items and u the farther from 0 of t and of t corrected for their skewness;
    - ``t sqrt(s^2 / S)`` with s^2 the variance over S seeds (of the differences of runs with equal
      seeds where both have the same seeds, else of each by itself), less the part of it that the
      items explain.

    Interval: the 2.5 and 97.5 % quantiles; p: twice the smaller share of draws on either side of
    0, but never below ``2^(1 - items)``, the least that a test by signs can find.

    It is the paired t-test over items where seeds do not matter, but for skewness, and over seeds
    (or Behrens and Fisher's test, where seeds differ) where items do not. In simulations of 10 and
    20 items it finds differences where there are none in at most 5 % (normal, right or wrong,
    symmetric with heavy tails), and in 9 and 7 % where the differences are log-normal.

    Args:
        second: another, on the same items in the same order.

    Raises:
        ValueError: the two do not have the same number of items.

    Source: Student 1908; Hall 1992, On the removal of skewness by transformation, Journal of the
        Royal Statistical Society B 54, section 2; Owen 2007, The pigeonhole bootstrap, arXiv
        0712.1111, for two crossed factors. Deviation from Hall: skewness never narrows an
        interval, as that of few items with heavy tails is chance.
    """
    effect = float(first.fitness.mean() - second.fitness.mean())
    paired = len(first.seeds) > 1 and first.seeds == second.seeds
    gaps = _item_gaps(first, second)
    rng = np.random.default_rng(seed)
    spread = np.full(draws, effect)
    for weight, gap in gaps:
        spread += weight * _moved_by_items(gap, draws, rng)
    parts = [_paired_gap(first, second)] if paired else [first, second]
    variable = [part for part in parts if len(part.seeds) > 1]
    unknown = [part for part in parts if len(part.seeds) == 1]
    for part in variable:  # t_(S - 1) sqrt(s^2 / S)
        variance = _seed_variance(part, less_items=bool(gaps))
        spread += rng.standard_t(len(part.seeds) - 1, draws) * math.sqrt(variance)
    with_seeds = bool(variable) and not unknown
    over: Over = "seeds" if with_seeds else "nothing"
    if gaps:
        over = "items and seeds" if with_seeds else "items"
    if over == "nothing":
        return Difference(effect, None, None, None, over, paired)
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    # of a sign test
    least = 2.0 ** (1 - sum(len(gap) for _, gap in gaps)) if gaps else 0.0
    return Difference(effect, low, high, max(least, _p_value(spread, effect)), over, paired)


def _item_gaps(first: GroupSample, second: GroupSample) -> list[tuple[float, Vector]]:
    """Returns per task its weight and the items' mean differences; none where they say nothing."""
    if first.gains is None or second.gains is None:
        return []
    _check_items(first, second)
    gaps = [
        one.mean(0) - other.mean(0) for one, other in zip(first.gains, second.gains, strict=True)
    ]
    if any(len(gap) < 2 for gap in gaps):
        return []
    return list(zip(first.weights, gaps, strict=True))


def _moved_by_items(gap: Vector, draws: int, rng: np.random.Generator) -> Vector:
    """Returns draws of how far the mean of all items may lie from that of ``(items,)`` of them."""
    t = rng.standard_t(len(gap) - 1, draws)
    apart = gap - gap.mean()
    deviation = math.sqrt(float((apart**2).mean()))
    if deviation <= 1e-12 * float(np.abs(gap).max()):
        return np.zeros(draws)
    corrected = unskewed(t, float((apart**3).mean()) / deviation**3 / math.sqrt(len(gap)))
    farther = np.where(t > 0, np.maximum(t, corrected), np.minimum(t, corrected))
    moved: Vector = -farther * deviation / math.sqrt(len(gap) - 1)
    return moved


def _paired_gap(first: GroupSample, second: GroupSample) -> GroupSample:
    """Returns the differences of runs with equal seeds as a sample."""
    gains = None
    if first.gains is not None and second.gains is not None:
        gains = tuple(a - b for a, b in zip(first.gains, second.gains, strict=True))
    return GroupSample(first.seeds, first.fitness - second.fitness, gains, first.weights)


def _seed_variance(sample: GroupSample, *, less_items: bool) -> float:
    """Returns the variance of the mean over seeds, without the part that the items explain."""
    variance = float(sample.fitness.var(ddof=1))
    if less_items and sample.gains is not None:
        variance -= math.fsum(
            weight**2 * _interaction(gains) / gains.shape[1]
            for weight, gains in zip(sample.weights, sample.gains, strict=True)
        )
    return max(variance, 0.0) / len(sample.seeds)


def _interaction(gains: Gains) -> float:
    """Returns the mean square of what is left of ``(seeds, items)`` without rows and columns."""
    seeds, items = gains.shape
    if items < 2:
        return 0.0
    # r_si = x_si - mean_i x_s. - mean_s x_.i + mean x
    residual = gains - gains.mean(1, keepdims=True) - gains.mean(0) + gains.mean()
    return float((residual**2).sum() / ((seeds - 1) * (items - 1)))


def _p_value(spread: Vector, effect: float) -> float:
    near = 1e-12 * max(abs(effect), float(np.abs(spread).max()))  # equal to 0 up to rounding
    tails = (spread <= near).sum(), (spread >= -near).sum()
    return min(1.0, 2 * (1 + float(min(tails))) / (len(spread) + 1))


def _check_items(first: GroupSample, second: GroupSample) -> None:
    assert first.gains is not None
    assert second.gains is not None
    items, others = ([g.shape[1] for g in gains] for gains in (first.gains, second.gains))
    if items != others:
        raise ValueError(f"{items} items per task and {others} are no pairs: score the same items")


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number, in the order given, never above 1.

    ``max over the k smallest of (n - k + 1) p_(k)``: the chance of even one false finding among
    all n stays below the level.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - rank) * p_values[index])  # (n - k + 1) p_(k)
        corrected[index] = min(1.0, highest)
    return corrected
