"""Who serves whom: which models stay whole and lend their blocks, and in which order."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Member:
    """One model that may lend blocks or take them.

    Args:
        cluster: models of one cluster, (architecture, data set), may serve each other.
        epsilon: what it spent itself; infinite: nothing is promised.
        ceiling: the most that it may come to.
        size: how much it has to lend.
    """

    name: str
    cluster: Hashable
    epsilon: float
    ceiling: float
    size: int = 0


@dataclass(frozen=True)
class Assignment:
    """A target takes blocks of a base; assignments are done in their order.

    Blocks that a target has lent by then must stay.
    """

    target: str
    base: str


Cost = Callable[[Member, Member], float]
"""Epsilon of a target that takes blocks of a base, ``cost(target, base)``."""


def greedy_bases(members: Sequence[Member], cost: Cost) -> tuple[Assignment, ...]:
    """Returns who takes blocks of whom; models that no assignment names stay whole.

    In every cluster the base is taken that serves most of the models left under their ceilings;
    of several the one for which all their epsilons grow least (who has no promise loses none),
    then the largest, then the one of least epsilon, by name. Those it serves are assigned, and
    the same is done with the rest: as few whole models as a greedy choice finds, at the least
    price. No weights are asked: a choice by distances would follow from the data of all models of
    a cluster.

    Our own: the paper's code holds fixed plans, no selection.
    """
    plan: list[Assignment] = []
    for cluster in _clusters(members):
        left = list(cluster)
        while served := _best(left, cost):
            base, targets = served
            plan += [Assignment(target.name, base.name) for target in targets]
            left = [one for one in left if one not in (base, *targets)]
    return tuple(plan)


def multi_bases(members: Sequence[Member]) -> tuple[Assignment, ...]:
    """Returns the comparison plan "multi": neighbours in pairs, the middle serves the upper half.

    Models by increasing epsilon in every cluster; those below the middle are paired, the lower
    one lends; a last one without a partner stays whole.

    Source: the public code of arXiv:2503.02862, by what its plots add up to.
    """
    plan: list[Assignment] = []
    for cluster in _clusters(members):
        lower, middle, upper = _halves(cluster)
        plan += [Assignment(one.name, middle.name) for one in upper]
        pairs = zip(lower[::2], lower[1::2], strict=False)
        plan += [Assignment(target.name, base.name) for base, target in pairs]
    return tuple(plan)


def cross_bases(members: Sequence[Member]) -> tuple[Assignment, ...]:
    """Returns the comparison plan "cross": the middle serves the upper half, and a chain below it.

    From the middle down every model takes blocks of the next lower one; blocks that it has lent
    by then must stay. Source: as for `multi_bases`.
    """
    plan: list[Assignment] = []
    for cluster in _clusters(members):
        lower, middle, upper = _halves(cluster)
        plan += [Assignment(one.name, middle.name) for one in upper]
        chain = [middle, *reversed(lower)]
        plan += [Assignment(target.name, base.name) for target, base in pairwise(chain)]
    return tuple(plan)


def fair_order(members: Sequence[Member]) -> tuple[Member, ...]:
    """Returns the models by increasing epsilon: each must do no worse than the one before it.

    Else who spent less privacy could end up with the better model.
    """
    return tuple(sorted(members, key=lambda one: (one.epsilon, one.name)))


def _best(left: Sequence[Member], cost: Cost) -> tuple[Member, list[Member]] | None:
    """Returns the best base and whom it serves; None: none serves any."""
    ranked = []
    for number, base in enumerate(left):
        rest = [one for one in left if one is not base]
        served = [one for one in rest if cost(one, base) <= one.ceiling]
        if served:
            promised = [one for one in served if math.isfinite(one.epsilon)]
            increase = sum(cost(one, base) - one.epsilon for one in promised)
            ranked.append(((-len(served), increase, -base.size, number), base, served))
    return min(ranked, key=lambda entry: entry[0])[1:] if ranked else None


def _clusters(members: Collection[Member]) -> Iterator[tuple[Member, ...]]:
    """Yields every cluster, its models by increasing epsilon."""
    clusters: dict[Hashable, list[Member]] = defaultdict(list)
    for member in members:
        clusters[member.cluster].append(member)
    yield from map(fair_order, clusters.values())


def _halves(
    cluster: Sequence[Member],
) -> tuple[Sequence[Member], Member, Sequence[Member]]:
    middle = max(0, len(cluster) // 2 - 1)
    return cluster[:middle], cluster[middle], cluster[middle + 1 :]
