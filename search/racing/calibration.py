"""How far estimates from a few items are off: judged on candidates that were left out for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from merging.arrays import Flags, Matrix, Vector
from search.racing.item_model import ItemModel
from search.racing.racing import Places
from search.winners.shrinkage import Strata

_FOLDS = 10
_LEAST = 4
"""Candidates that a fit needs in order to be judged on a later generation."""
_MEMORY = 0.25
"""What a generation counts for beside the next one."""


@dataclass(frozen=True, eq=False)
class FullAnswers:
    """Candidates that were asked all items, in their order.

    Args:
        cases: ``(candidates, items)``.
        generations: ``(candidates,)``, ascending.
        warmed: by so many, the first ones, the telling items are chosen.
        factors: most numbers of a candidate's ability.
        count: how many items are telling.
    """

    cases: Matrix
    generations: npt.NDArray[np.int64]
    warmed: int
    strata: Strata
    factors: int
    count: int

    def fit(self, who: Flags) -> ItemModel:
        """Returns the model of some of the candidates."""
        return ItemModel.fit(self.cases[who], self.strata, self.factors)

    def telling(self, who: Flags) -> Places:
        """Returns the telling items, by those of some candidates that came early."""
        return self.fit(who & (np.arange(len(who)) < self.warmed)).choose(self.count)

    def calibrated(self) -> tuple[ItemModel, Places, float]:
        """Returns the model of all, the telling items, and the standard error of estimates.

        The model's own error is multiplied by the root mean square of what candidates are missed
        by that neither the model nor the choice of items has seen, in its own units, where this is
        above 1. They are left out in two ways, and the larger figure counts: by tenths, and by
        generation, each one judged by those before it. Where candidates get better from generation
        to generation, estimates fall short of it: the mean by which they do is added to them,
        shrunk by what of it may be chance (positive-part James-Stein). Later generations count for
        more.
        """
        everyone, when = np.ones(len(self.cases), bool), self.generations
        model, places = self.fit(everyone), self.telling(everyone)
        own = model.error(places)
        folds = np.arange(len(self.cases)) % _FOLDS
        off, error = self._judged([(folds != fold, folds == fold) for fold in np.unique(folds)])
        within = math.sqrt(float(np.mean((off / error) ** 2)))
        ahead = [(when < g, when == g) for g in np.unique(when) if (when < g).sum() >= _LEAST]
        if not ahead:
            return model, places, own * max(1.0, within)
        off, error = self._judged(ahead)
        age = when[-1] - np.concatenate([when[test] for _, test in ahead])
        weights = _MEMORY**age / (_MEMORY**age).sum()
        bias = _shrunken(off, weights, within * error)
        beyond = math.sqrt(float(weights @ ((off - bias) / error) ** 2))
        return model.moved(places, -bias), places, own * max(1.0, within, beyond)

    def _judged(self, folds: list[tuple[Flags, Flags]]) -> tuple[Vector, Vector]:
        """Returns estimates less truths of all that were left out, and the models' own errors."""
        off, errors = [], []
        for train, test in folds:
            model, places = self.fit(train), self.telling(train)
            for row in self.cases[test]:
                off.append(model.complete(places, row[places]).fitness - row @ model.shares)
            errors += [max(model.error(places), 1e-300)] * int(test.sum())
        return np.array(off), np.array(errors)


def _shrunken(off: Vector, weights: Vector, error: Vector) -> float:
    """Returns the mean, drawn to 0 by what of it may be chance: ``b max(0, 1 - v / b^2)``.

    Source: James and Stein 1961, Estimation with quadratic loss, for the shrinkage.
    """
    bias = float(weights @ off)
    spread = max(float(weights @ (off - bias) ** 2), float(weights @ error**2))
    variance = float(weights @ weights) * spread  # v
    return bias * max(0.0, 1 - variance / bias**2) if bias else 0.0
