"""A few telling items, chosen by item response theory from what was answered before."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merging.arrays import Matrix, Vector
from search.checks import check_at_least, check_not_negative
from search.loop.history import Record
from search.racing.racing import Full, Places, Race, best_full
from search.winners.shrinkage import Strata

logger = logging.getLogger(__name__)

_FOLDS = 10
_PRIOR = 2.0
"""Items' worth of the task's noise that an item's own noise is drawn towards."""


@dataclass(frozen=True, eq=False)
class ItemModel:
    """Linear item response: ``y_ci = m_i + l_i . a_c + e_ci``, a_c normal, e_ci of variance v_i.

    The ability a_c of candidate c has a few numbers; an item's information on it is
    ``l_i l_i' / v_i``. The fitness is ``sum_i s_i y_ci + offset``.

    Args:
        means: ``(items,)`` m.
        loadings: ``(items, factors)`` l; the discrimination of items.
        noise: ``(items,)`` v.
        shares: ``(items,)`` s: the weight of an item's task, divided by its number of items.
        offset: not 0 where a score is no plain mean of its items.

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
    offset: float

    @classmethod
    def fit(cls, cases: Matrix, fitness: Vector, strata: Strata, factors: int) -> ItemModel:
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
        offset = float(np.mean(fitness - cases @ shares))
        return cls(means, loadings, noise, shares, offset)

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
        return Full(float(expected @ self.shares) + self.offset, expected)

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


@dataclass(frozen=True)
class ItemResponse:
    """Candidates answer a few telling items; only the most promising answer all.

    The first generations answer all items. From then on, the same few are asked of everyone:
    those that tell most of the fitness by a model of item responses, which is fitted anew to all
    complete answers before every generation. What is estimated has a stated standard error: the
    model's own, times the root mean square of what it misses candidates by that were left out of
    the fit, in its own units, where this is above 1.

    Args:
        share: of all items that everyone is asked.
        warm_up: generations that are asked all items; more, while there are too few candidates
            to fit the model to.
        keep: at most this share of a generation, rounded up, is asked all items.
        doubt: who would stay below the best so far even with so many standard errors more is not
            asked all items.
        factors: most numbers of a candidate's ability.
    """

    share: float = 0.1
    warm_up: int = 2
    keep: float = 0.25
    doubt: float = 2.0
    factors: int = 4
    least_candidates = 1

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("keep", self.keep)):
            if not 0 < value < 1:
                raise ValueError(f"racing.{name} must lie between 0 and 1, got {value}")
        check_at_least(1, "racing.", warm_up=self.warm_up, factors=self.factors)
        check_not_negative("racing.", doubt=self.doubt)

    def race(
        self, count: int, generation: int, records: Sequence[Record], strata: Strata, seed: int
    ) -> Race:
        """Returns the race of a generation; see `Racing`."""
        items = sum(count for count, _ in strata)
        everything = np.arange(items)
        answered = [r for r in records if _is_complete(r)]
        before = answered[: self._warmed(records)]
        best = best_full(records)
        if generation < self.warm_up or len(before) < self.factors + 4 or best is None:
            return _Estimated([everything])
        places = self._fit(before, strata).choose(math.ceil(self.share * items))
        model = self._fit(answered, strata)
        error = model.error(places) * self._missed(answered, strata, places)
        asked = f"{len(places)} of {items} items"
        logger.info("racing: %s, standard error of the fitness %.3g", asked, error)
        most = math.ceil(self.keep * count)
        least = best.fitness - self.doubt * error
        return _Estimated([places, everything], model, error, least, most)

    def _warmed(self, records: Sequence[Record]) -> int:
        """Returns how many complete answers came before the first estimate: the warm-up's."""
        count = 0
        for record in records:
            if record.asked is not None:
                break
            count += _is_complete(record)
        return count

    def _fit(self, records: Sequence[Record], strata: Strata) -> ItemModel:
        cases, fitness = _matrix(records)
        return ItemModel.fit(cases, fitness, strata, self.factors)

    def _missed(self, records: Sequence[Record], strata: Strata, places: Places) -> float:
        """Returns how far off the model is for candidates left out, in standard errors; >= 1."""
        cases, fitness = _matrix(records)
        squares = []
        for fold in range(min(_FOLDS, len(records))):
            out = np.arange(len(records)) % _FOLDS == fold
            model = ItemModel.fit(cases[~out], fitness[~out], strata, self.factors)
            error = max(model.error(places), 1e-300)
            for row, true in zip(cases[out], fitness[out], strict=True):
                expected = model.complete(places, row[places]).fitness
                squares.append(((expected - true) / error) ** 2)
        return max(1.0, math.sqrt(float(np.mean(squares))))  # root mean square


@dataclass(frozen=True, eq=False)
class _Estimated:
    """The race to the most promising; see `Race`.

    Args:
        stages: the telling items and all, or all alone.
        model: of the items; None: all are asked.
        error: stated standard error of an estimate.
        least: estimate that suffices to be asked all.
        most: how many are asked all.
    """

    stages: Sequence[Places]
    model: ItemModel | None = None
    error: float = 0.0
    least: float = 0.0
    most: int = 0

    def staying(self, stage: int, cases: Mapping[int, Vector]) -> list[int]:
        """Returns the few with the highest estimates that may be better than the best."""
        assert self.model is not None
        places = self.stages[stage]
        estimates = {i: self.model.complete(places, row).fitness for i, row in cases.items()}
        ranked = sorted(estimates, key=lambda number: (-estimates[number], number))
        return sorted(i for i in ranked[: self.most] if estimates[i] >= self.least)

    def estimate(self, stage: int, cases: Vector, reference: Full) -> Full:
        """Returns what the model expects; see `Race`."""
        assert self.model is not None
        return self.model.complete(self.stages[stage], cases)


def _is_complete(record: Record) -> bool:
    evaluated = record.same_as is None and record.asked is None
    return evaluated and record.fitness is not None and record.cases is not None


def _matrix(records: Sequence[Record]) -> tuple[Matrix, Vector]:
    """Returns cases ``(candidates, items)`` and fitness ``(candidates,)`` of complete answers."""
    cases = np.stack([record.cases for record in records if record.cases is not None])
    fitness = np.array([record.fitness[0] for record in records if record.fitness is not None])
    return cases, fitness


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
