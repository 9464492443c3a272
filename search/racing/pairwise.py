"""The paired sequential test of a race, with a stated error rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from merging.arrays import Matrix, Vector
from merging.seeding import stable_seed
from search.checks import check_not_negative
from search.loop.history import Record
from search.racing.racing import ItemSample, Prefixed, Race, best_full, check_shares
from search.racing.size_classes import SizeClasses
from search.winners.shrinkage import Strata

_LEAST_ITEMS = 4
"""Of every task (all, where it has fewer) before a variance is believed."""


@dataclass(frozen=True)
class PairedTest:
    """A paired sequential test: who is shown to be worse than another is dropped.

    At every look a candidate is compared with the best of those still in the race and with the
    best of earlier generations, item by item. It is dropped where the upper confidence limit of
    its difference, ``D + t se``, is below 0; against the best of earlier generations, which is
    fully known and never dropped, below `tolerance`.

    **The stated error rate**: the probability that a generation's truly best candidate (on all
    items) is dropped, although it is better than the best of earlier generations by `tolerance`
    or more, is at most `alpha`, for every generation. For the truly best one can be dropped by
    any of its J rivals at any of K looks; each comparison has level ``alpha / (J K)``
    (Bonferroni), so that it does not matter how the rival is chosen, how candidates are
    correlated, or how often one looks.

    What must hold: the items' order is random and was not known when the candidates were made
    (every generation has a new one), and weighted means of differences, by task (of documents of
    very unequal length: by class of like length, see `SizeClasses`), are close
    enough to normal for Student's t with the Welch-Satterthwaite degrees of freedom. Items are
    drawn without replacement, so that variances are those of a finite population. Tasks whose
    scores are few different values (right or wrong) show no spread by luck on few items: there
    the standard deviation is taken to be at least that of one item more that differs by the
    largest step seen.

    Args:
        alpha: the error rate of one generation's race.
        looks: share of every task's items after which candidates are compared, ascending; four
            at least of every task and class.
        tolerance: in units of the fitness; see above.
        against_best: whether the best of earlier generations takes part.

    Source: Maron and Moore 1994, Hoeffding races, section 3, for the race; Pocock 1977, Group
        sequential methods, Biometrika 64, for equal levels at few looks; Cochran 1977, Sampling
        techniques, sections 5.4 and 5.5 for stratified variances and degrees of freedom.
        Deviation: Bonferroni instead of Pocock's constants, which need a known correlation.
    """

    alpha: float = 0.05
    looks: Sequence[float] = (0.0625, 0.125, 0.25, 0.5)
    tolerance: float = 0.0
    against_best: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"racing.alpha must lie between 0 and 1, got {self.alpha}")
        check_not_negative("racing.", tolerance=self.tolerance)
        check_shares("racing.looks", self.looks)

    @property
    def least_candidates(self) -> int:
        """One suffices where the best of earlier generations takes part."""
        return 1 if self.against_best else 2

    def race(
        self,
        count: int,
        generation: int,
        records: Sequence[Record],
        strata: Strata,
        seed: int,
        sizes: Vector | None = None,
    ) -> Race:
        """Returns the race of a generation; see `Racing`."""
        order = stable_seed("generation", seed, generation)
        best = best_full(records) if self.against_best else None
        classes = SizeClasses.of(strata, sizes)
        stages = classes.prefixes(self.looks, _LEAST_ITEMS, order)
        comparisons = (count - 1 + (best is not None)) * (len(stages) - 1)  # J K
        level = self.alpha / max(comparisons, 1)
        return _TestedRace(stages, classes.strata, classes.labels, best, level, self.tolerance)


@dataclass(frozen=True, eq=False)
class _TestedRace(Prefixed):
    level: float
    tolerance: float

    def staying(self, stage: int, cases: Mapping[int, Vector]) -> list[int]:
        """Returns who is not shown to be worse."""
        if not cases:
            return []
        sample = self.sample(stage)
        rows = np.stack(list(cases.values()))
        leader = int(np.argmax(sample.means(rows)))
        rivals = [(rows[leader], 0.0)]
        if self.best is not None:
            rivals.append((self.best.cases[sample.places], self.tolerance))
        steps = self._steps(np.stack([*rows, *(rival for rival, _ in rivals)]), sample)
        worse = np.zeros(len(rows), bool)
        for rival, tolerance in rivals:
            worse |= upper_limits(rows - rival, sample, self.level, steps) < tolerance
        return [number for number, out in zip(cases, worse, strict=True) if not out]

    def _steps(self, rows: Matrix, sample: ItemSample) -> list[float | None]:
        """Returns the largest step of each stratum's scores; what the best so far got is known."""
        steps = []
        for number, (part, _, _, _) in enumerate(sample.parts()):
            known = None if self.best is None else self.best.cases[self.labels == number]
            steps.append(_step(rows[:, part], known))
        return steps


def upper_limits(
    apart: Matrix, sample: ItemSample, level: float, steps: Sequence[float | None]
) -> Vector:
    """Returns ``D + t se``: the mean difference of all items is higher with probability `level`.

    ``D = sum_t w_t mean(apart_t)``, ``se^2 = sum_t w_t^2 s_t^2 / n_t (1 - n_t / N_t)``; infinite
    where one item of a task is all there is.

    Args:
        apart: ``(pairs, asked)`` differences on the asked items.
        steps: of every task, the largest step of a score that takes few values; None: it takes
            any value.
    """
    value, variance, weighted = (np.zeros(len(apart)) for _ in range(3))
    for (part, asked, items, weight), step in zip(sample.parts(), steps, strict=True):
        if weight == 0 or not asked:
            continue
        value += weight * apart[:, part].mean(axis=1)  # D
        if asked == items:
            continue
        if asked < 2 or step == math.inf:
            return np.full(len(apart), math.inf)  # nothing is known of the spread
        spread = apart[:, part].var(axis=1, ddof=1)
        if step is not None:
            spread = np.maximum(spread, step**2 / (asked + 1))
        of_task = weight**2 * spread / asked * (1 - asked / items)  # w^2 s^2 / n (1 - n / N)
        variance += of_task
        weighted += of_task**2 / (asked - 1)
    # Welch-Satterthwaite: (sum_t var_t)^2 / sum_t var_t^2 / (n_t - 1)
    freedom = variance**2 / np.where(weighted > 0, weighted, 1.0)
    t = np.where(variance > 0, special.stdtrit(np.maximum(freedom, 1.0), 1 - level), 0.0)
    limits: Vector = value + t * np.sqrt(variance)
    return limits


def _step(cases: Matrix, known: Vector | None) -> float | None:
    """Returns the largest step of a task's scores ``(competitors, asked)``.

    None where they take any value: no two items of a competitor have the same. Infinite where
    nothing is known of it: all asked are equal, and nobody was asked all items (`known`).
    """
    ordered = np.sort(cases, axis=1)
    if not (np.diff(ordered, axis=1) == 0).any():
        return None
    step = max(np.ptp(cases), 0.0 if known is None else np.ptp(known))
    return math.inf if known is None and step == 0 else float(step)
