"""How well scores tell members from others: area under the ROC curve, and TPR at a low FPR."""

import math

import numpy as np
from scipy import stats

from merging.arrays import Vector


def auc(members: Vector, others: Vector) -> float:
    """Returns P(a member's score > another's) + P(they are equal) / 2, over all pairs.

    Exact: Mann and Whitney's U by ranks, in which equal scores share theirs.

    Args:
        members: ``(members,)`` scores, higher is more likely a member.
        others: ``(others,)``.
    """
    return float(placements(members, others)[0].mean())


def placements(members: Vector, others: Vector) -> tuple[Vector, Vector]:
    """Returns how each score stands among those of the other side; the mean of both is the AUC.

    Returns:
        ``(members,)`` the share of others that lie below, ``(others,)`` the share of members
        that lie above; equal ones count half. A rank among all less the rank on the own side is
        the number on the other side that lie below.

    Source: DeLong, DeLong and Clarke-Pearson 1988, the structural components V10 and V01.
    """
    ranks = stats.rankdata(np.concatenate([members, others]))
    m, n = len(members), len(others)
    below = (ranks[:m] - stats.rankdata(members)) / n  # V10
    above = 1 - (ranks[m:] - stats.rankdata(others)) / m  # V01
    return np.asarray(below, np.float64), np.asarray(above, np.float64)


def true_positives_at(members: Vector, others: Vector, fpr: float) -> tuple[Vector, float]:
    """Returns which members are found at a false positive rate of at most `fpr`, and chance.

    The threshold is the largest score of another that may not be called a member: with k others
    allowed, the (k + 1)-th largest; members must lie above it.

    Args:
        fpr: allowed share of others, in [0, 1).

    Returns:
        ``(members,)`` 1 where found, else 0: their mean is the TPR; and the TPR on average where
        the scores know nothing.
    """
    allowed = math.floor(fpr * len(others) + 1e-9)  # k
    threshold = np.sort(others)[::-1][allowed]
    chance = (allowed + 1) / (len(others) + 1)  # (k + 1) / (n + 1)
    return (members > threshold).astype(np.float64), chance


def advantage(members: Vector, others: Vector) -> tuple[float, float]:
    """Returns ``max_t TPR(t) - FPR(t)`` and its chance.

    This is Smirnov's one-sided statistic D+. Where the scores know nothing,
    ``P(D+ > x) -> exp(-2 x^2 m n / (m + n))``, so that it has the mean
    ``sqrt(pi / 8) sqrt((m + n) / (m n))`` for large samples: it is not 0.

    Source: Yeom et al. 2018, Privacy risk in machine learning, arXiv 1709.01604, definition 4,
        at the threshold that is best for these items.
    """
    m, n = len(members), len(others)
    thresholds = np.unique(np.concatenate([members, others]))
    true_positives = m - np.searchsorted(np.sort(members), thresholds, side="left")
    false_positives = n - np.searchsorted(np.sort(others), thresholds, side="left")
    gap = float(np.max(true_positives / m - false_positives / n, initial=0.0))
    return gap, math.sqrt(math.pi / 8 * (m + n) / (m * n))  # sqrt(pi / 8) sqrt((m + n) / m n)
