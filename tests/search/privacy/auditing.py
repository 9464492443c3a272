"""Lower bounds of epsilon from outputs alone, by runs on two neighbouring data sets."""

import math

import numpy as np
from scipy.stats import beta

from merging.arrays import Vector

_ERROR = 1e-4
"""Chance that a bound is above the true epsilon."""


def proved_epsilon(one: Vector, other: Vector, delta: float = 0.0) -> float:
    """Returns an epsilon that two samples of one mechanism's outputs prove; 0: nothing.

    Any event E of any two neighbours has ``P(E) <= e^epsilon P'(E) + delta``. The first half of
    the runs chooses a tail of the outputs, the second half counts how often either data set falls
    into it; Clopper-Pearson intervals of both chances give ``ln((p - delta) / q)``.

    Args:
        one: ``(runs,)``, what tells most of an output, such as its sum.
        other: of the neighbouring data set.

    Source: Jagielski, Ullman, Oprea 2020, Auditing differentially private machine learning,
    arXiv 2006.07709.
    """
    half = len(one) // 2
    tails = [
        (_chosen_bound(a[:half], b[:half], edge, delta), a[half:], b[half:], edge)
        for a, b in ((one, other), (other, one), (-one, -other), (-other, -one))
        for edge in np.unique(np.quantile(a[:half], np.linspace(0, 0.999, 200)))
    ]
    _, a, b, edge = max(tails, key=lambda tail: tail[0])
    return max(0.0, _chosen_bound(a, b, edge, delta))


def _chosen_bound(one: Vector, other: Vector, edge: float, delta: float) -> float:
    runs, hits, misses = len(one), int((one >= edge).sum()), int((other >= edge).sum())
    p = beta.ppf(_ERROR / 2, hits, runs - hits + 1) if hits else 0.0
    q = beta.ppf(1 - _ERROR / 2, misses + 1, runs - misses) if misses < runs else 1.0
    return math.log((p - delta) / q) if p > delta else -math.inf
