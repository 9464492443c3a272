"""Scores shrunk towards what candidates have in common: the luck of the best taken out of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from merging.arrays import Vector
from search.loop.history import Record

Strata = Sequence[tuple[int, float]]
"""Items and weight of every task, in the order in which its cases stand in a record."""


@dataclass(frozen=True)
class ShrunkenFitness:
    """What is known of a candidate's true fitness.

    Args:
        variance: its variance, 0 where nothing is left to doubt.
    """

    value: float
    variance: float


def shrink(records: Sequence[Record], strata: Strata) -> dict[int, ShrunkenFitness]:
    """Returns the empirical-Bayes estimate of every scored candidate, by id.

    ``m + B_j (f_j - m)`` with ``B_j = t / (t + s_j)``: f_j a candidate's fitness, m their mean,
    s_j the sampling variance of f_j - m over the items (paired: what all candidates find hard
    does not count as noise), t the variance between candidates that is left when the mean s_j is
    taken off (moments, not below 0). Repeats and failures are left out.

    Args:
        records: of a search with one objective, with their per-item cases.

    Raises:
        ValueError: a record has no cases, more than one objective, or cases that do not fit.

    Source: Efron and Morris 1975, Data analysis using Stein's estimator, section 3 (unequal
    variances). Deviation: t by moments instead of maximum likelihood.
    """
    scored = [r for r in records if r.fitness is not None and r.same_as is None]
    if not scored:
        return {}
    fitness = np.array([_single(record) for record in scored])
    variances = paired_variances(np.stack([_cases(r, strata) for r in scored]), strata)
    mean = float(fitness.mean())
    if len(scored) == 1:
        return {scored[0].id: ShrunkenFitness(mean, float(variances[0]))}
    between = max(0.0, float(fitness.var(ddof=1) - variances.mean()))  # t = var(f) - mean(s)
    estimates = {}
    for record, value, variance in zip(scored, fitness.tolist(), variances.tolist(), strict=True):
        total = between + variance
        factor = between / total if total > 0 else 1.0  # B_j = t / (t + s_j)
        # m + B_j (f_j - m), of variance B_j s_j
        estimates[record.id] = ShrunkenFitness(mean + factor * (value - mean), factor * variance)
    return estimates


def paired_variances(cases: npt.NDArray[np.float64], strata: Strata) -> Vector:
    """Returns the sampling variance of each row's weighted mean, relative to the mean row.

    Args:
        cases: ``(candidates, items)``, the tasks' items one after the other.

    Returns:
        ``(candidates,)``: ``sum_t w_t^2 var_t / n_t``, 0 for a task of one item.
    """
    count = len(cases)
    apart = cases - cases.mean(axis=0) if count > 1 else cases
    lost = count / (count - 1) if count > 1 else 1.0  # the mean row is made of the rows
    variances, begin = np.zeros(count), 0
    for items, weight in strata:
        if items > 1:
            spread = apart[:, begin : begin + items].var(axis=1, ddof=1)
            variances += lost * weight**2 * spread / items  # w_t^2 var_t / n_t
        begin += items
    return variances


def _single(record: Record) -> float:
    assert record.fitness is not None
    if record.fitness.size != 1:
        raise ValueError(
            f"shrinkage ranks by one number, candidate {record.id} has {record.fitness.size}: "
            "choose an objective with one, or take a second look"
        )
    return float(record.fitness[0])


def _cases(record: Record, strata: Strata) -> Vector:
    items = sum(count for count, _ in strata)
    if record.cases is None or len(record.cases) != items:
        has = "none" if record.cases is None else str(len(record.cases))
        raise ValueError(
            f"shrinkage needs the scores of all {items} search items, candidate {record.id} has "
            f"{has}: use evaluators with per-item scores, or take a second look"
        )
    return record.cases
