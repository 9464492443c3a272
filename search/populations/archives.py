"""MAP-Elites and CycleQD: the best of every cell of a grid over the tasks' scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from merging.arrays import Matrix, Vector
from search.checks import check_at_least
from search.populations.population import Individual, Pair, Pairing, SurvivalRule


@dataclass(frozen=True)
class ArchiveGrid:
    """Equal cells between two scores; what lies outside belongs to the first or the last.

    The published code of M2N2's MAP-Elites gives a perfect score a cell behind the last and
    throws the model away; see test_a_perfect_score_falls_into_the_last_cell.

    Args:
        low: score at which the first cell begins; 0 is the base where scores are normalised.
        high: score at which the last cell ends; 1 is the best expert.
    """

    cells: int
    low: float
    high: float

    def __post_init__(self) -> None:
        check_at_least(1, "population.", cells=self.cells)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                "population.low must lie below population.high and both be finite, got "
                f"{self.low} and {self.high}"
            )

    def cell(self, scores: Vector) -> tuple[int, ...]:
        """Returns the cell of ``(tasks,)`` scores, one number of [0, cells) per task."""
        # clip(floor((s - low) / (high - low) cells), 0, cells - 1)
        cell = np.floor((scores - self.low) / (self.high - self.low) * self.cells)
        return tuple(int(i) for i in np.clip(cell, 0, self.cells - 1))


@dataclass(frozen=True)
class MapElites(SurvivalRule):
    """Every cell of a grid over all tasks' scores keeps the member with the best mean score.

    Parents are drawn uniformly: whoever holds a cell may breed.

    Args:
        low: score at which the first cell begins; all below belong to it.
        high: score at which the last cell ends; all above belong to it.

    Source: Mouret & Clune 2015, Illuminating search spaces by mapping elites, arXiv 1504.04909;
        task scores as behaviour: Abrantes et al. 2025 (M2N2), section 4.1.
    """

    cells: int = 5
    low: float = 0.0
    high: float = 1.0

    @property
    def grid(self) -> ArchiveGrid:
        """The cells; refuses options without meaning."""
        return ArchiveGrid(self.cells, self.low, self.high)

    def __post_init__(self) -> None:
        _ = self.grid

    def check_objectives(self, count: int) -> None:
        """Refuses a single number."""
        if count < 2:
            raise ValueError(
                f"{type(self).__name__} needs a number for each of at least two tasks, the "
                f"objective has {count}: choose the objective Pareto and several tasks, or the "
                "population Truncation"
            )

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns the elite of every cell; of equals the oldest."""
        grid = self.grid
        archive = _elites(
            individuals,
            lambda one: grid.cell(one.fitness),  # b(x)
            lambda one: float(one.fitness.mean()),  # p(x)
        )
        return sorted(archive.values(), key=lambda individual: individual.id)

    def pairing(self, members: Sequence[Individual], generation: int) -> Pairing:
        """Returns what draws two cells."""
        return _drawing(members, np.ones(len(members)))


@dataclass(frozen=True)
class CycleQD(MapElites):
    """One archive per task, in which that task is quality and the others are behaviour.

    Everyone competes in all archives. In generation t parents come from the archive of task
    ``t modulo tasks``, drawn in proportion to the product of its quality and its cells' numbers,
    each scaled to [0.5, 1.3] over the archive (the paper's elite sampling); an archive with one
    member is filled up with those of the others. The paper rotates after every child, here after
    every generation.

    Args:
        elite_sampling: false: parents are drawn uniformly from the archive.

    Source: Kuroki et al. 2024, Agent skill acquisition for LLMs via CycleQD, arXiv 2410.14735,
        sections 3.1 and 3.4; the range of elite sampling as in its released code.
    """

    elite_sampling: bool = True

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns who is elite in at least one archive."""
        elites = {
            one.id: one
            for task in range(individuals[0].fitness.size)
            for one in self.archive(individuals, task).values()
        }
        return [elites[number] for number in sorted(elites)]

    def archive(
        self, individuals: Sequence[Individual], task: int
    ) -> dict[tuple[int, ...], Individual]:
        """Returns cell to elite: best at `task` among those alike at the other tasks."""
        grid = self.grid
        return _elites(
            individuals,
            lambda one: grid.cell(np.delete(one.fitness, task)),
            lambda one: float(one.fitness[task]),
        )

    def pairing(self, members: Sequence[Individual], generation: int) -> Pairing:
        """Returns what draws two elites of the archive whose turn it is."""
        task = generation % members[0].fitness.size  # the cycle of tasks
        archive = self.archive(members, task)
        if len(archive) < 2:
            return super().pairing(members, generation)
        elites = list(archive.values())
        weights = np.ones(len(elites))
        if self.elite_sampling:
            qualities = np.array([[float(one.fitness[task])] for one in elites])
            cells = np.array(list(archive), np.float64)
            weights = _elite_weights(np.concatenate([qualities, cells], axis=1))
        return _drawing(elites, weights)


def _elites(
    individuals: Sequence[Individual],
    cell: Callable[[Individual], tuple[int, ...]],
    quality: Callable[[Individual], float],
) -> dict[tuple[int, ...], Individual]:
    """Returns cell to its best; of equals the one with the lowest id, in the order of cells."""
    elites: dict[tuple[int, ...], Individual] = {}
    for one in sorted(individuals, key=lambda one: (-quality(one), one.id)):
        elites.setdefault(cell(one), one)
    return dict(sorted(elites.items()))


def _elite_weights(columns: Matrix) -> Vector:
    """Returns ``prod_c (0.5 + 0.8 (x_c - min) / (max - min))`` per row; 1 where all are equal."""
    weights = np.ones(len(columns))
    for column in columns.T:
        span = column.max() - column.min()
        if span > 0:
            weights *= 0.5 + 0.8 * (column - column.min()) / span
    return weights


def _drawing(members: Sequence[Individual], weights: Vector) -> Pairing:
    def draw(rng: np.random.Generator) -> Pair:
        first, second = rng.choice(len(members), 2, replace=False, p=weights / weights.sum())
        return members[first], members[second]

    return draw
