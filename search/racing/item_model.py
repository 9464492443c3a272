"""Item response theory: what a few items tell of all, and which tell most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from merging.arrays import Matrix, Vector
from search.racing.racing import Full, Places
from search.winners.shrinkage import Strata

_PRIOR = 2.0
"""Items' worth of the task's noise that an item's own noise is drawn towards."""


@dataclass(frozen=True, eq=False)
class ItemModel:
    """Linear item response: ``y_ci = m_i + l_i . a_c + e_ci``, a_c normal, e_ci of variance v_i.

    The ability a_c of candidate c has a few numbers; an item's information on it is
    ``l_i l_i' / v_i``. The fitness is ``sum_i s_i y_ci``.

    Args:
        means: ``(items,)`` m.
        loadings: ``(items, factors)`` l; the discrimination of items.
        noise: ``(items,)`` v.
        shares: ``(items,)`` s: the weight of an item's task, divided by its number of items.

    Source: Mellenbergh 1994, A unidimensional latent trait model for continuous item responses,
        Multivariate Behavioral Research 29, with several abilities; fitted as Tipping and Bishop
        1999, Probabilistic principal component analysis, section 3.2. Deviations: items have
        noise of their own; right and wrong are taken as the numbers they are instead of through
        a logistic curve, as only the mean over items is asked for.
    """

    means: Vector
    loadings: Matrix
    noise: Vector
    shares: Vector

    @classmethod
    def fit(cls, cases: Matrix, strata: Strata, factors: int) -> ItemModel:
        """Returns the model of candidates that were asked all items.

        Args:
            cases: ``(candidates, items)``, at least three candidates.
            factors: most numbers of an ability; fewer where there are few candidates.
        """
        shares = np.concatenate([np.full(n, weight / n) for n, weight in strata])
        scale = np.sqrt(np.maximum(shares, 1e-12))
        means = cases.mean(axis=0)
        # (y_ci - m_i) sqrt(s_i) = U D R
        left, size, right = np.linalg.svd((cases - means) * scale, full_matrices=False)
        used = max(1, min(factors, len(cases) - 2))
        freedom = len(cases) - 1 - used
        # sigma^2: mean of what the factors that are left out explain
        rest = float((size[used:] ** 2).sum()) / freedom / max(1, len(shares) - used)
        # l = R' sqrt(D^2 / (n - 1) - sigma^2) / sqrt(s)
        explained = np.sqrt(np.maximum(size[:used] ** 2 / (len(cases) - 1) - rest, 0.0))
        loadings = (right[:used].T * explained) / scale[:, None]
        residual = cases - means - (left[:, :used] * size[:used]) @ right[:used] / scale
        noise = _towards_tasks((residual**2).sum(axis=0), freedom, strata)
        return cls(means, loadings, noise, shares)

    def moved(self, places: Places, by: float) -> ItemModel:
        """Returns the model that expects so much more fitness, on all items but `places`."""
        unseen = np.ones(len(self.means), bool)
        unseen[places] = False
        rest = float(self.shares[unseen].sum())
        return self if rest == 0 else replace(self, means=self.means + unseen * by / rest)

    def choose(self, count: int) -> Places:
        """Returns `count` items: one after the other the one that leaves the least doubt.

        Doubt is the variance of the fitness given the answers, see `error`: with V the variance of
        the ability and ``L = sum s_i l_i`` over the items that are not asked,
        ``L' V L + sum s_i^2 v_i`` over these. Asking item i makes ``L - s_i l_i`` of L and
        ``V - V l_i l_i' V / (v_i + l_i' V l_i)`` of V.
        """
        chosen = np.zeros(len(self.means), bool)
        unseen = self.loadings.T @ self.shares  # L
        variance = np.eye(self.loadings.shape[1])  # V
        for _ in range(min(count, len(self.means))):
            projected = self.loadings @ variance  # (V l_i)'
            total = self.noise + (projected * self.loadings).sum(axis=1)  # v_i + l_i' V l_i
            left = unseen - self.shares[:, None] * self.loadings  # L_i = L - s_i l_i
            learnt = (left * projected).sum(axis=1) ** 2 / total  # (L_i' V l_i)^2 / (v_i + ...)
            doubt = ((left @ variance) * left).sum(axis=1) - learnt  # L_i' V_i L_i
            gain = self.shares**2 * self.noise - doubt
            item = int(np.argmax(np.where(chosen, -np.inf, gain)))
            # V <- V - V l l' V / (v + l' V l)
            variance = variance - np.outer(projected[item], projected[item]) / total[item]
            unseen = left[item]
            chosen[item] = True
        return np.flatnonzero(chosen).astype(np.int64)

    def complete(self, places: Places, cases: Vector) -> Full:
        """Returns fitness and all cases, as they are expected from those of some items.

        Items that were asked stay as they are, as in tinyBenchmarks' p-IRT (Maia Polo et al. 2024,
        arXiv 2402.14992, section 3).
        """
        variance, weighted = self._ability(places)
        ability = variance @ weighted.T @ (cases - self.means[places])  # V sum l_i (y_i - m_i)/v_i
        expected = self.means + self.loadings @ ability  # m + l . a
        expected[places] = cases
        return Full(float(expected @ self.shares), expected)

    def error(self, places: Places) -> float:
        """Returns the standard error of `complete`'s fitness: of the ability, and of the items."""
        unseen = np.ones(len(self.means), bool)
        unseen[places] = False
        variance, _ = self._ability(places)
        loading = self.loadings[unseen].T @ self.shares[unseen]  # L
        noise = float(self.shares[unseen] ** 2 @ self.noise[unseen])  # sum s_i^2 v_i
        return math.sqrt(max(0.0, float(loading @ variance @ loading)) + noise)  # L' V L + ...

    def _ability(self, places: Places) -> tuple[Matrix, Matrix]:
        """Returns the ability's variance after `places`, and their loadings over their noise."""
        weighted = self.loadings[places] / self.noise[places, None]
        # V = (I + sum l_i l_i' / v_i)^-1
        information = np.eye(weighted.shape[1]) + weighted.T @ self.loadings[places]
        return np.linalg.inv(information).astype(np.float64), weighted


def _towards_tasks(squares: Vector, freedom: int, strata: Strata) -> Vector:
    """Returns every item's noise, drawn towards the mean of its task; never 0."""
    noise, begin = np.empty_like(squares), 0
    for items, _ in strata:
        of_task = squares[begin : begin + items]
        mean = max(float(of_task.mean()) / freedom, 1e-12)
        # v_i = (SS_i + prior mean) / (freedom + prior)
        noise[begin : begin + items] = (of_task + _PRIOR * mean) / (freedom + _PRIOR)
        begin += items
    return noise
