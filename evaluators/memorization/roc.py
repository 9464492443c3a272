"""How well scores tell members from others: area under the curve, and hits at few false alarms."""

from __future__ import annotations

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
        that lie above; equal ones count half.

    Source: DeLong, DeLong and Clarke-Pearson 1988, the structural components V10 and V01.
    """
    together = stats.rankdata(np.concatenate([members, others]))
    m, n = len(members), len(others)
    below = (together[:m] - stats.rankdata(members)) / n
    above = 1 - (together[m:] - stats.rankdata(others)) / m
    return np.asarray(below, np.float64), np.asarray(above, np.float64)


def hits_at(members: Vector, others: Vector, false_alarms: float) -> tuple[Vector, float]:
    """Returns which members are found with at most a share of others found, and chance.

    The threshold is the largest score of another that may not be called a member: with k others
    allowed, the (k + 1)-th largest; members must lie above it.

    Args:
        members: ``(members,)`` scores, higher is more likely a member.
        others: ``(others,)``.
        false_alarms: allowed share of others, in [0, 1).

    Returns:
        ``(members,)`` 1 where found, else 0; and the share that is found on average where the
        scores know nothing, (k + 1) / (others + 1).
    """
    allowed = math.floor(false_alarms * len(others) + 1e-9)
    threshold = np.sort(others)[::-1][allowed]
    return (members > threshold).astype(np.float64), (allowed + 1) / (len(others) + 1)


def advantage(members: Vector, others: Vector) -> tuple[float, float]:
    """Returns the largest share found less false alarms over all thresholds, and chance.

    This is Smirnov's one-sided statistic D+. Where the scores know nothing,
    ``P(D+ > x) -> exp(-2 x^2 m n / (m + n))``, so that it has the mean
    ``sqrt(pi / 8) sqrt((m + n) / (m n))`` for large samples: it is not 0.

    Source: Yeom et al. 2018, Privacy risk in machine learning, arXiv 1709.01604, definition 4,
        at the threshold that is best for these items.
    """
    m, n = len(members), len(others)
    steps = np.unique(np.concatenate([members, others]))
    found = m - np.searchsorted(np.sort(members), steps, side="left")
    false = n - np.searchsorted(np.sort(others), steps, side="left")
    gap = float(np.max(found / m - false / n, initial=0.0))
    return gap, math.sqrt(math.pi / 8 * (m + n) / (m * n))
