"""Scores of a whole corpus that are no mean over items, with each item's part in them."""

import numpy as np

from evaluators.evaluator import Score
from evaluators.intervals import mean_interval
from merging.arrays import Matrix


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
        return Score(0.0, np.zeros(len(counts)))
    totals = wholes.sum(axis=0)
    ratios = counts.sum(axis=0) / totals
    cases = (ratios + len(counts) * (counts - ratios * wholes) / totals).mean(axis=1)
    return Score(float(ratios.mean()), cases, interval=mean_interval(cases, 0.0, 1.0))
