"""Natural niches: members share what each item is worth, and mate with those who complete them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from merging.arrays import Matrix, Vector
from search.checks import check_at_least, check_not_negative
from search.populations.population import Individual, Pair, Pairing, SurvivalRule
from search.strategy import Outcome


@dataclass(frozen=True)
class Niches(SurvivalRule):
    """An archive of fixed size whose members compete for items: M2N2.

    Item j is a resource of capacity 1, divided in proportion to the members' scores on it: member
    i gets ``s_ij / (sum_k s_kj) ** alpha``, and its fitness is the sum over items. Who solves what
    few solve is worth more than who solves what all do. The least fit are removed one after the
    other, each time with shares computed anew; of equals the younger goes.

    The first parent is drawn in proportion to fitness, the second in proportion to attraction,
    ``sum_j max(0, share_ij - share_1j)``: what it wins where the first wins less. Where nobody is
    attractive, because the first parent is nowhere exceeded, the second is drawn by fitness (the
    published code divides 0 by 0 here and always takes the first of the archive).

    Scores are the outcomes' cases made non-negative, see `scores`. The published code removes the
    worst after every single child, which popsize 1 does; else after every generation.

    Args:
        alpha: strength of the competition; 0: everyone's fitness is the sum of its scores.
        attraction: whether the second parent is drawn by attraction; false: by fitness.
        scores: ``above_worst``: each item's least score among those compared is 0, which fits any
            metric; ``clipped``: below 0 is 0, for metrics that are never negative (raw accuracy).

    Source: Abrantes et al. 2025, Competition and attraction improve model fusion (M2N2),
        sections 3.2 and 3.3, arXiv 2508.16204; alpha as in its released code.
    """

    size: int = 16
    alpha: float = 1.0
    attraction: bool = True
    scores: Literal["above_worst", "clipped"] = "above_worst"
    reads_cases = True

    def __post_init__(self) -> None:
        check_at_least(2, "population.", size=self.size)
        check_not_negative("population.", alpha=self.alpha)
        if self.scores not in ("above_worst", "clipped"):
            raise ValueError(
                f"population.scores must be 'above_worst' or 'clipped', got {self.scores!r}"
            )

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Refuses outcomes without finite cases, or with others than the members'."""
        items = _items(members[0]) if members else None
        for outcome in outcomes:
            if outcome.fitness is None:
                continue
            if outcome.cases is None or not outcome.cases.size:
                raise ValueError(
                    f"Niches form on per-item scores, candidate {outcome.id} has none: choose "
                    "tasks whose evaluators give them for the main metric, or the population "
                    "Truncation"
                )
            items = items or outcome.cases.size
            if outcome.cases.shape != (items,) or not np.isfinite(outcome.cases).all():
                raise ValueError(
                    f"Niches need the same items for all: candidate {outcome.id} has per-item "
                    f"scores of shape {outcome.cases.shape}, not {items} finite numbers"
                )

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns those who hold their own in the competition for items."""
        members = list(individuals)
        scores = self._scores(individuals)
        while len(members) > self.size:
            fitness = shares(scores, self.alpha).sum(axis=1)  # f_i = sum_j share_ij
            worst = len(members) - 1 - int(np.argmin(fitness[::-1]))
            del members[worst]
            scores = np.delete(scores, worst, axis=0)
        return members

    def pairing(self, members: Sequence[Individual], generation: int) -> Pairing:
        """Returns what draws a first parent by fitness and a second by attraction."""
        share = shares(self._scores(members), self.alpha)
        fitness = share.sum(axis=1)

        def draw(rng: np.random.Generator) -> Pair:
            first = _drawn(fitness, rng)
            others = np.where(np.arange(len(members)) == first, 0.0, fitness)
            if self.attraction:
                attractive = attraction(share, first)
                others = attractive if attractive.any() else others
            if not others.any():
                others = np.where(np.arange(len(members)) == first, 0.0, 1.0)
            return members[first], members[_drawn(others, rng)]

        return draw

    def _scores(self, individuals: Sequence[Individual]) -> Matrix:
        scores = np.array([individual.cases for individual in individuals], np.float64)
        least = scores.min(axis=0) if self.scores == "above_worst" else 0.0
        positive: Matrix = np.maximum(scores - least, 0.0)
        return positive


def shares(scores: Matrix, alpha: float) -> Matrix:
    """Returns what each member gets of each item, ``(members, items)``.

    ``s_ij / (sum_k s_kj) ** alpha``; an item on which nobody scores gives nothing.

    Args:
        scores: ``(members, items)``, at least 0.
        alpha: strength of the competition.
    """
    demand = scores.sum(axis=0)  # sum_k s_kj
    share: Matrix = scores / np.where(demand > 0, demand, 1.0) ** alpha
    return share


def attraction(share: Matrix, first: int) -> Vector:
    """Returns how much each member wins where the first parent wins less, ``(members,)``.

    ``sum_j max(0, share_ij - share_1j)``; 0 for the first parent itself.
    """
    attractive: Vector = np.maximum(share - share[first], 0.0).sum(axis=1)
    return attractive


def _drawn(weights: Vector, rng: np.random.Generator) -> int:
    total = weights.sum()
    return int(rng.choice(len(weights), p=weights / total if total > 0 else None))


def _items(individual: Individual) -> int:
    assert individual.cases is not None  # the strategy keeps them for these rules
    return individual.cases.size
