"""How sure a difference between two models is: paired bootstrap over items, and over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from merging.arrays import Vector

Cases = npt.NDArray[np.float64]
"""One task's per-item scores: ``(items,)``, or ``(seeds, items)`` where runs are repeated."""

_DRAWS_AT_ONCE = 2_000_000
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """A difference with its confidence interval.

    Args:
        difference: first minus second; above 0 the first is better.
        p: two-sided; the smallest level at which the interval touches 0, but never below
            ``2^(1 - items)``, the least that a test by signs can find with so few items.
        seeds: 1 where they were not resampled.
        resamples: how many; `p` is never below ``2 / (resamples + 1)``.
    """

    difference: float
    low: float
    high: float
    p: float
    level: float
    items: int
    seeds: int
    resamples: int


def paired_bootstrap(
    first: Sequence[Cases],
    second: Sequence[Cases],
    *,
    weights: Sequence[float],
    shares: Sequence[Vector | None] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Returns ``sum_t weight_t * mean_i(first_ti - second_ti)`` with its BCa interval.

    Items are drawn with replacement within each task, the same ones for both models; tasks are
    fixed. Where cases are ``(seeds, items)`` the seeds are drawn as well, the same ones for all
    tasks and both models (row s of both is a pair): the interval then says what other seeds *and*
    other items would give. Drawing both counts their interaction twice: a little too wide rather
    than too narrow (Owen 2007).

    Resamples of n values spread by ``sqrt((n - 1) / n)`` too little, which shows with few items
    and much with few seeds; so the values are first moved apart by the inverse (Hesterberg 2015).
    With 20 normal or 40 strongly skewed items a 95 % interval then holds the truth in 93 %.

    Args:
        first: a task's cases each, higher is better, already in the objective's units.
        second: of the same items (and seeds) in the same order.
        shares: per task how much each item counts, ``(items,)``, where the task's score is a
            ratio over items (bits per byte: the documents' bytes); the mean is then
            ``sum share * case / sum share`` in every resample. None: all count alike.
        level: confidence, within (0, 1).
        seed: equal arguments give equal results.

    Raises:
        ValueError: cases that are no pairs, not finite, or of fewer than 2 items: nothing can be
            said of their spread.

    Source: Efron 1987, Better bootstrap confidence intervals (BCa, eq. 6.6-6.8, acceleration from
        the influence of every item); Owen 2007, The pigeonhole bootstrap, arXiv 0712.1111;
        Hesterberg 2015, What teachers should know about the bootstrap, arXiv 1411.5279.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    tasks = _tasks(first, second, weights, shares)
    seeds = len(tasks[0].gaps)
    difference = math.fsum(task.difference for task in tasks)
    spread = _resampled(tasks, seeds, resamples, np.random.default_rng(seed))
    bias, acceleration = _corrections(tasks, seeds, spread, difference)
    tail = (1 - level) / 2
    low, high = np.quantile(
        spread, [_shifted(at, bias, acceleration) for at in (tail, 1 - tail)]
    ).tolist()
    items = sum(task.gaps.shape[1] for task in tasks)
    return Interval(
        difference=difference,
        low=low,
        high=high,
        p=max(_p_value(spread, bias, acceleration), 0.5 ** (items - 1)),
        level=level,
        items=items,
        seeds=seeds,
        resamples=resamples,
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """One task: ``gaps`` first minus second, ``(seeds, items)``; ``shares`` ``(items,)``."""

    weight: float
    gaps: Cases
    shares: Vector

    @property
    def difference(self) -> float:
        return self.weight * float((self.gaps @ self.shares).mean() / self.shares.sum())

    def drawn(self, items: npt.NDArray[np.int64], seeds: Cases) -> Vector:
        """Returns the difference of each resample; `items` and `seeds` have a row for each."""
        shares = self.shares[items]
        total = np.zeros(len(items))
        for gaps, times in zip(self.gaps, seeds.T, strict=True):
            total += times * (gaps[items] * shares).sum(1)
        drawn: Vector = self.weight * total / (len(self.gaps) * shares.sum(1))
        return drawn

    def item_influence(self) -> Vector:
        """Returns how much each item moves the difference: ``(items,)``, summing to 0."""
        mean = self.gaps.mean(0)
        centred = mean - (mean @ self.shares) / self.shares.sum()
        influence: Vector = self.weight * self.shares * centred / self.shares.sum()
        return influence

    def seed_influence(self) -> Vector:
        """Returns the same for each seed, ``(seeds,)``."""
        means = self.gaps @ self.shares / self.shares.sum()
        influence: Vector = self.weight * (means - means.mean()) / len(means)
        return influence


def _tasks(
    first: Sequence[Cases],
    second: Sequence[Cases],
    weights: Sequence[float],
    shares: Sequence[Vector | None] | None,
) -> list[_Task]:
    given = [None] * len(first) if shares is None else list(shares)
    if not first or not len(first) == len(second) == len(weights) == len(given):
        raise ValueError(
            f"one entry per task is needed, got {len(first)} and {len(second)} cases, "
            f"{len(weights)} weights and {len(given)} shares"
        )
    tasks = []
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        if one.shape != other.shape or one.ndim not in (1, 2):
            raise ValueError(f"task {number}: cases {one.shape} and {other.shape} are no pairs")
        gaps = np.atleast_2d(np.asarray(one, np.float64) - np.asarray(other, np.float64))
        share = given[number]
        share = np.ones(gaps.shape[1]) if share is None else np.asarray(share, np.float64)
        _check(number, gaps, share)
        tasks.append(_Task(float(weights[number]), _widened(gaps, share), share))
    if len({len(task.gaps) for task in tasks}) > 1:
        raise ValueError(f"tasks have {[len(task.gaps) for task in tasks]} seeds: give all alike")
    return tasks


def _check(number: int, gaps: Cases, share: Vector) -> None:
    if gaps.shape[1] < 2:
        raise ValueError(
            f"task {number} has {gaps.shape[1]} item(s): an interval needs at least 2"
        )
    if share.shape != gaps.shape[1:] or not (share > 0).all():
        raise ValueError(
            f"task {number}: shares must be {gaps.shape[1]} numbers above 0, got {share.shape}"
        )
    if not np.isfinite(gaps).all():
        raise ValueError(f"task {number} has a case that is not finite")


def _widened(gaps: Cases, shares: Vector) -> Cases:
    """Returns gaps with the same means, seeds and items as far apart as their variances say."""
    seeds, items = gaps.shape
    of_seeds = (gaps @ shares / shares.sum())[:, None]
    mean = of_seeds.mean()
    # x + (sqrt(n / (n - 1)) - 1) (x_item - mean)
    widened = gaps + (math.sqrt(items / (items - 1)) - 1) * (gaps.mean(0) - mean)
    if seeds > 1:
        widened = widened + (math.sqrt(seeds / (seeds - 1)) - 1) * (of_seeds - mean)
    return np.asarray(widened, np.float64)


def _resampled(
    tasks: Sequence[_Task], seeds: int, resamples: int, rng: np.random.Generator
) -> Vector:
    """Returns the difference of every resample, ``(resamples,)``."""
    drawn = rng.multinomial(seeds, [1 / seeds] * seeds, size=resamples).astype(np.float64)
    spread = np.zeros(resamples)
    for task in tasks:
        items = task.gaps.shape[1]
        step = max(1, _DRAWS_AT_ONCE // items)
        for begin in range(0, resamples, step):
            rows = slice(begin, min(begin + step, resamples))
            picked = rng.integers(items, size=(rows.stop - begin, items))
            spread[rows] += task.drawn(picked, drawn[rows])
    return spread


def _corrections(
    tasks: Sequence[_Task], seeds: int, spread: Vector, difference: float
) -> tuple[float, float]:
    """Returns BCa's bias z0 and acceleration a (Efron 1987, eq. 6.8 and 6.6)."""
    influences = [task.item_influence() for task in tasks]
    if seeds > 1:
        influences.append(np.sum([task.seed_influence() for task in tasks], axis=0))
    influence = np.concatenate(influences)
    variance = float((influence**2).sum())
    skew = float((influence**3).sum())
    # a = sum U^3 / (6 (sum U^2)^(3/2))
    acceleration = skew / (6 * variance**1.5) if variance > 0 else 0.0
    return _quantile_of(spread, difference), acceleration


def _quantile_of(spread: Vector, value: float) -> float:
    """Returns the normal quantile of the share of `spread` below `value`, half of the equals."""
    near = 1e-12 * max(abs(value), float(np.abs(spread).max()))  # equal up to rounding
    below = (spread < value - near).sum() + 0.5 * (np.abs(spread - value) <= near).sum()
    return _NORMAL.inv_cdf((float(below) + 0.5) / (len(spread) + 1))


def _shifted(at: float, bias: float, acceleration: float) -> float:
    """Returns the quantile of the resamples where BCa's interval ends (Efron 1987, eq. 6.7)."""
    moved = bias + _NORMAL.inv_cdf(at)  # z0 + z_at
    # Phi(z0 + (z0 + z_at) / (1 - a (z0 + z_at)))
    return _NORMAL.cdf(bias + moved / max(1 - acceleration * moved, 1e-3))


def _p_value(spread: Vector, bias: float, acceleration: float) -> float:
    """Returns twice the tail at which the interval ends at 0: `_shifted` solved for its `at`."""
    if not spread.any():
        return 1.0
    moved = _quantile_of(spread, 0.0) - bias
    tail = _NORMAL.cdf(moved / max(1 + acceleration * moved, 1e-3) - bias)
    return min(1.0, max(2 * min(tail, 1 - tail), 2 / (len(spread) + 1)))
