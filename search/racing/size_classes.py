"""Items in classes of like size: few long documents decide, and none may be overlooked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from merging.arrays import Vector
from search.racing.racing import Places, ordered_stages
from search.winners.shrinkage import Strata


@dataclass(frozen=True, eq=False)
class SizeClasses:
    """Every task's items in classes of like size, each a stratum of its own.

    Where long documents count for more, few of them decide, and a random sample may hold none: it
    then shows neither the difference that they make nor that it may be large. Sizes within a class
    differ by a factor of two at most; the shortest items, which together have a tenth of a task's
    size, are one class. A task is one class where no item has twice the mean size.

    Args:
        strata: items and weight of every class.
        labels: ``(items,)`` class of every item.
        amounts: of every class, the items of its task times its share of the task's size.

    Source: Cochran 1977, Sampling techniques, section 5.5, for samples in proportion to size.
    """

    strata: Strata
    labels: Places
    amounts: Sequence[float]

    @classmethod
    def of(cls, tasks: Strata, sizes: Vector | None) -> SizeClasses:
        """Returns the classes of all tasks."""
        strata: list[tuple[int, float]] = []
        amounts: list[float] = []
        labels, begin = [], 0
        for items, weight in tasks:
            own = np.ones(items) if sizes is None else sizes[begin : begin + items]
            _, classes = np.unique(_halvings(own), return_inverse=True)
            labels.append(len(strata) + classes)
            counts = np.bincount(classes).tolist()
            strata += [(count, weight * count / items) for count in counts]
            total = max(float(own.sum()), 1e-300)
            amounts += [items * own[classes == k].sum() / total for k in range(len(counts))]
            begin += items
        return cls(strata, np.concatenate(labels).astype(np.int64), amounts)

    def prefixes(self, shares: Sequence[float], least: int, seed: int) -> list[Places]:
        """Returns stages that are prefixes of one random order of every class, then all items.

        Args:
            shares: of every task's items, for every stage but the last; spread over its classes
                in proportion to their size.
            least: items of every class, where it has so many.
        """
        pairs = [(n, a) for (n, _), a in zip(self.strata, self.amounts, strict=True)]
        counts = [
            [min(n, max(least, math.ceil(share * amount - 1e-9))) for n, amount in pairs]
            for share in shares
        ]
        return ordered_stages(self.strata, counts, seed, self.labels)


def _halvings(sizes: Vector) -> Vector:
    """Returns how often the largest size can be halved down to each; see `SizeClasses`."""
    if sizes.max() < 2 * sizes.mean():
        return np.zeros(len(sizes))
    ascending = np.sort(sizes)
    shortest = ascending[np.cumsum(ascending) > 0.1 * ascending.sum()][0]
    halvings: Vector = np.floor(np.log2(sizes.max() / np.maximum(sizes, shortest)))
    return halvings
