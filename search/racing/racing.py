"""Racing: candidates that fall behind on the first items are not asked the rest; numbers only.

Items are the cases of a fitness, the tasks' one after the other: strata, as in `shrinkage`. A
race asks them in stages and drops candidates between two stages. What is dropped gets the
difference estimate; who stays to the end is asked all items and keeps its plain scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from merging.arrays import Matrix, Vector
from merging.seeding import stable_seed
from search.checks import check_at_least
from search.loop.history import Record
from search.winners.shrinkage import Strata

Places: TypeAlias = npt.NDArray[np.int64]
"""Items of a race by number, ascending."""


@dataclass(frozen=True, eq=False)
class Full:
    """A candidate that was asked all items: its fitness, and its cases ``(items,)``."""

    fitness: float
    cases: Vector


class Race(Protocol):
    """One generation's race."""

    @property
    def stages(self) -> Sequence[Places]:
        """Items asked by the end of every stage: ever more, and all of them at the last."""
        ...

    def staying(self, stage: int, cases: Mapping[int, Vector]) -> list[int]:
        """Returns who goes on after a stage that is not the last.

        Args:
            stage: its number from 0.
            cases: of everyone still in the race, on the items asked so far.
        """
        ...

    def estimate(self, stage: int, cases: Vector, reference: Full) -> Full:
        """Returns what a candidate that was dropped after `stage` would have got.

        Args:
            stage: the last one that it took part in.
            cases: on the items of this stage.
            reference: the best that was asked all items, of this race or before.
        """
        ...


class Racing(Protocol):
    """A rule of racing; the configuration's choice."""

    @property
    def least_candidates(self) -> int:
        """Smallest generation that can be raced."""
        ...

    def race(
        self,
        count: int,
        generation: int,
        records: Sequence[Record],
        strata: Strata,
        seed: int,
        sizes: Vector | None = None,
    ) -> Race:
        """Returns the race of a generation of `count` candidates.

        Args:
            generation: its number from 0.
            records: of earlier generations.
            strata: items and weight of every task.
            sizes: ``(items,)`` by which items may count for more or less; None: not known.
        """
        ...


def best_full(records: Sequence[Record]) -> Full | None:
    """Returns the best of the records that were asked all items; None: there is none."""
    best: Full | None = None
    for record in records:
        if record.fitness is None or record.asked is not None or record.cases is None:
            continue
        if best is None or float(record.fitness[0]) > best.fitness:
            best = Full(float(record.fitness[0]), record.cases)
    return best


def weighed_prefixes(
    strata: Strata, shares: Sequence[float], least: int, seed: int
) -> list[Places]:
    """Returns stages whose tasks have items in proportion to their weights, then all items.

    A stage of m items has ``floor(w_t m)`` of task t, where it has so many: equal numbers where
    tasks count alike, however many items each could ask. A task whose weight is not worth one
    item is left out: the chance of a single item, however little its task counts, would hide what
    the others say.

    Args:
        shares: of all items, for every stage but the last.
        least: items of the task with the highest weight, where it has so many.
    """
    total = sum(items for items, _ in strata)
    fewest = least / max(weight for _, weight in strata)
    counts = []
    for share in shares:
        asked = max(share * total, fewest)
        counts.append([min(n, math.floor(weight * asked + 1e-9)) for n, weight in strata])
    return ordered_stages(strata, counts, seed, task_labels(strata))


def task_labels(strata: Strata) -> Places:
    """Returns ``(items,)`` the task of every item."""
    return np.repeat(np.arange(len(strata)), [items for items, _ in strata])


def ordered_stages(
    strata: Strata, counts: Sequence[Sequence[int]], seed: int, labels: Places
) -> list[Places]:
    """Returns stages with so many items of every stratum, in one random order, then all items."""
    orders = []
    for number in range(len(strata)):
        rng = np.random.default_rng(stable_seed("racing", seed, number))
        orders.append(rng.permutation(np.flatnonzero(labels == number)))
    stages: list[Places] = []
    for stage in (*counts, [items for items, _ in strata]):
        taken = [order[:count] for order, count in zip(orders, stage, strict=True)]
        places = np.sort(np.concatenate(taken)).astype(np.int64)
        if not stages or len(places) > len(stages[-1]):
            stages.append(places)
    return stages


@dataclass(frozen=True, eq=False)
class ItemSample:
    """Some of the items, and what they say of all.

    Args:
        labels: ``(items,)`` stratum of every item; None: they stand one stratum after the other.
    """

    places: Places
    strata: Strata
    labels: Places | None = None

    def parts(self) -> list[tuple[Places, int, int, float]]:
        """Returns of every stratum: which asked items are its, how many, of how many, weight."""
        ends = np.cumsum([items for items, _ in self.strata])
        asked = np.searchsorted(ends, self.places, side="right")
        if self.labels is not None:
            asked = self.labels[self.places]
        found = [np.flatnonzero(asked == number) for number in range(len(self.strata))]
        return [
            (part, len(part), items, weight)
            for part, (items, weight) in zip(found, self.strata, strict=True)
        ]

    def means(self, cases: Matrix) -> Vector:
        """Returns ``sum_t w_t mean_i(cases_ti)`` of every row: without bias for all items'."""
        means = np.zeros(len(cases))
        for part, asked, _, weight in self.parts():
            if asked:
                means += weight * cases[:, part].mean(axis=1)
        return means

    def difference_estimate(self, cases: Vector, reference: Full) -> Full:
        """Returns the reference's numbers plus the paired mean differences of the strata.

        Without bias over the random order of the items. Cases that were asked stay as they are,
        the others are the reference's, moved by their stratum's mean difference.

        Source: Särndal, Swensson and Wretman 1992, Model assisted survey sampling, section 6.3.
        """
        estimated = reference.cases.copy()
        labels = task_labels(self.strata) if self.labels is None else self.labels
        apart = cases - reference.cases[self.places]
        for number, (part, asked, _, _) in enumerate(self.parts()):
            if asked:
                estimated[labels == number] += apart[part].mean()
        estimated[self.places] = cases
        # f_reference + sum_t w_t mean_i(y_ti - reference_ti)
        return Full(reference.fitness + float(self.means(apart[None])[0]), estimated)


@dataclass(frozen=True, eq=False)
class Prefixed:
    """What all races on random prefixes have in common.

    Args:
        stages: see `Race`.
        labels: ``(items,)`` stratum of every item.
        best: of earlier generations; None: there is none, or it does not take part.
    """

    stages: Sequence[Places]
    strata: Strata
    labels: Places
    best: Full | None

    def sample(self, stage: int) -> ItemSample:
        """Returns the items asked by the end of a stage."""
        return ItemSample(self.stages[stage], self.strata, self.labels)

    def estimate(self, stage: int, cases: Vector, reference: Full) -> Full:
        """Returns the difference estimate; see `Race`."""
        return self.sample(stage).difference_estimate(cases, reference)


@dataclass(frozen=True)
class Halving:
    """Successive halving: after every rung the best 1 in `eta` go on.

    It states no error rate: how many go on is fixed, however close they are. A rung asks of every
    task as many items as its weight is worth, see `weighed_prefixes`.

    Args:
        eta: of so many competitors one goes on, rounded up.
        rungs: share of all items after which candidates are dropped, ascending; as the next rung
            has `eta` times as many items, each of them costs about the same.
        least: items at the first rung of the task that counts most, where it has so many.
        against_best: the best of earlier generations competes, at no cost, so that a generation
            that is worse as a whole is dropped as a whole.

    Source: Jamieson and Talwalkar 2016, Non-stochastic best arm identification, arXiv
        1502.07943, figure 3. Deviations: rungs are shares of a fixed set of items, and the best of
        earlier generations may take part.
    """

    eta: float = 3.0
    rungs: Sequence[float] = (0.0123, 0.037, 0.111, 0.333)
    least: int = 1
    against_best: bool = True

    def __post_init__(self) -> None:
        if not self.eta > 1:
            raise ValueError(f"racing.eta must be above 1, got {self.eta}")
        check_shares("racing.rungs", self.rungs)
        check_at_least(1, "racing.", least=self.least)

    @property
    def least_candidates(self) -> int:
        """One suffices where the best of earlier generations competes."""
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
        best = best_full(records) if self.against_best else None
        order = stable_seed("generation", seed, generation)
        stages = weighed_prefixes(strata, self.rungs, self.least, order)
        return _HalvingRace(stages, strata, task_labels(strata), best, self.eta)


@dataclass(frozen=True, eq=False)
class _HalvingRace(Prefixed):
    eta: float

    def staying(self, stage: int, cases: Mapping[int, Vector]) -> list[int]:
        """Returns the best of the competitors; of equals the first, the best so far before all."""
        sample = self.sample(stage)
        competing = dict(cases)
        if self.best is not None:
            competing[-1] = self.best.cases[sample.places]
        if not competing:
            return []
        means = sample.means(np.stack(list(competing.values()))).tolist()
        ranked = sorted((-mean, number) for mean, number in zip(means, competing, strict=True))
        kept = ranked[: math.ceil(len(ranked) / self.eta)]  # ceil(n / eta) go on
        return sorted(number for _, number in kept if number >= 0)


def check_shares(option: str, shares: Sequence[float]) -> None:
    """Raises ValueError where shares of items are none, not in (0, 1), or do not ascend."""
    if not shares:
        raise ValueError(f"{option} is empty: give at least one share of the items")
    if any(not 0 < share < 1 for share in shares) or sorted(set(shares)) != list(shares):
        raise ValueError(f"{option} must ascend between 0 and 1, got {list(shares)}")
