"""Scores of a whole corpus that are no mean over items, with each item's part in them."""

import numpy as np
from scipy import stats

from evaluators.evaluator import Score
from evaluators.intervals import mean_interval
from merging.arrays import Matrix, Vector


def ratio_score(counts: Matrix, wholes: Matrix) -> Score:
    """Returns the mean over classes of ``F = sum counts / sum wholes``, such as F1 in [0, 1].

    Cases are what each item adds to it to first order (the delta method):
    ``F + n (count - F whole) / sum wholes``, whose mean is F. The interval is that of their mean.

    Args:
        counts: ``(items, classes)``, of F1 ``2 TP``.
        wholes: ``(items, classes)``, of F1 ``2 TP + FP + FN``. Classes without any count for
            nothing; without any class the score is 0.
    """
    found = wholes.sum(axis=0) > 0
    counts, wholes = counts[:, found], wholes[:, found]
    if not found.any():
        return Score(0.0, np.zeros(len(counts)), own_cases=False)
    totals = wholes.sum(axis=0)
    ratios = counts.sum(axis=0) / totals
    cases = (ratios + len(counts) * (counts - ratios * wholes) / totals).mean(axis=1)
    interval = mean_interval(cases, 0.0, 1.0)
    return Score(float(ratios.mean()), cases, interval=interval, own_cases=False)


def rank_correlation(found: Vector, wanted: Vector) -> Score:
    """Returns Spearman's rho of two numbers of each item, in [-1, 1]; 0 where one is constant.

    Cases are rho plus its influence function at each item, whose mean is rho: with the
    distribution functions F and G of both numbers, ``12 (F(x) G(y) + E[F(X) 1(Y > y)] +
    E[G(Y) 1(X > x)]) - 9 - 3 rho``, ties counted by half. The interval is that of their mean.

    Args:
        found: ``(items,)``, at least two.

    Source: Croux & Dehon 2010, Influence functions of the Spearman and Kendall correlation
        measures, Statistical Methods & Applications 19:497, proposition 1.
    """
    if np.ptp(found) == 0 or np.ptp(wanted) == 0:
        return Score(0.0, np.zeros(len(found)), own_cases=False)
    rho = float(stats.spearmanr(found, wanted).statistic)
    f, g = ((stats.rankdata(each) - 0.5) / len(each) for each in (found, wanted))
    influence = 12 * (f * g + _mean_above(f, wanted) + _mean_above(g, found))
    cases = rho + influence - influence.mean()
    return Score(rho, cases, interval=mean_interval(cases, -1.0, 1.0), own_cases=False)


def _mean_above(values: Vector, of: Vector) -> Vector:
    """Returns for each item the mean over all of ``value 1(of > its own)``, ties by half."""
    order = np.argsort(of, kind="stable")
    ends = np.concatenate([[0.0], np.cumsum(values[order])])
    low, high = (np.searchsorted(of[order], of, side=side) for side in ("left", "right"))
    above: Vector = (ends[-1] - (ends[low] + ends[high]) / 2) / len(of)
    return above
