"""Guesses from public examples, for attackers that see how long a text is and nothing else."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

Integers: TypeAlias = npt.NDArray[np.int64]
View: TypeAlias = tuple[Integers, Integers]
"""What is known beside the value: of each public example, and of each that is asked for."""


def likeliest(values: Integers, views: Sequence[View]) -> Integers:
    """Returns ``(asked,)`` the value that public examples of the same key have most often.

    Of several views it is the one in which that value's share is the largest, at the lower end of
    its 95 % interval, so that a few examples alike convince nobody.

    Args:
        values: ``(public,)`` whole numbers from 0, at least one.
        views: keys ``(public,)`` and ``(asked,)``, whole numbers from 0; a key that no public
            example has says nothing.
    """
    guesses, shares = zip(*(_view(values, *view) for view in views), strict=True)
    best = np.argmax(np.stack(shares), axis=0)
    return np.asarray(np.stack(guesses)[best, np.arange(len(best))])


def _view(values: Integers, public: Integers, asked: Integers) -> tuple[Integers, Integers]:
    """Returns ``(asked,)`` values and lower ends of their shares, 0 where the key is unknown."""
    pairs, counts = np.unique(public * (values.max() + 1) + values, return_counts=True)
    keys, pair_values = np.divmod(pairs, values.max() + 1)
    order = np.lexsort((-pair_values, counts, keys))  # the last of a key is its most frequent
    known, totals = np.unique(public, return_counts=True)
    last = order[np.searchsorted(keys[order], known, side="right") - 1]
    k, n = counts[last], totals
    low = special.betaincinv(k, n - k + 1, 0.025)  # Clopper and Pearson, as in `share_interval`
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return pair_values[last][at], np.where(known[at] == asked, low[at], 0.0)
