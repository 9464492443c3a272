"""MAP-Elites and CycleQD: the best of every cell of a grid over the tasks' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from merging.arrays import Vector
from search.populations.population import Individual, Pair
from search.strategy import Outcome


@dataclass(frozen=True)
class ArchiveGrid:
    """Equal cells between two scores; what lies outside belongs to the first or the last.

    The published code of M2N2's MAP-Elites gives a perfect score a cell behind the last and
    throws the model away; see test_a_perfect_score_falls_into_the_last_cell.

    Args:
        cells: per task.
        low: score at which the first cell begins; 0 is the base where scores are normalised.
        high: score at which the last cell ends; 1 is the best expert.
    """

    cells: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise ValueError(f"population.cells must be at least 1, got {self.cells}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                "population.low must lie below population.high and both be finite, got "
                f"{self.low} and {self.high}"
            )

    def cell(self, scores: Vector) -> tuple[int, ...]:
        """Returns the cell of ``(tasks,)`` scores, one number of [0, cells) per task."""
        where = np.floor((scores - self.low) / (self.high - self.low) * self.cells)
        return tuple(int(i) for i in np.clip(where, 0, self.cells - 1))


@dataclass(frozen=True)
class MapElites:
    """Every cell of a grid over all tasks' scores keeps the member with the best mean score.

    Parents are drawn uniformly: whoever holds a cell may breed.

    Args:
        cells: per task.
        low: score at which the first cell begins; all below belong to it.
        high: score at which the last cell ends; all above belong to it.

    Raises:
        ValueError: an option without meaning.

    Source: Mouret & Clune 2015, Illuminating search spaces by mapping elites, arXiv 1504.04909;
        task scores as behaviour: Abrantes et al. 2025 (M2N2), section 4.1.
    """

    cells: int = 5
    low: float = 0.0
    high: float = 1.0
    reads_cases = False

    def __post_init__(self) -> None:
        ArchiveGrid(self.cells, self.low, self.high)

    def check_objectives(self, count: int) -> None:
        """Refuses a single number."""
        _check_objectives("MapElites", count)

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Reads none."""

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns the elite of every cell; of equals the oldest."""
        grid = ArchiveGrid(self.cells, self.low, self.high)
        elites = _elites(
            individuals, lambda one: grid.cell(one.fitness), lambda one: float(one.fitness.mean())
        )
        return sorted(elites.values(), key=lambda one: one.id)

    def pairing(
        self, members: Sequence[Individual], generation: int
    ) -> Callable[[np.random.Generator], Pair]:
        """Returns what draws two cells."""
        return _drawing(members, np.ones(len(members)))


@dataclass(frozen=True)
class CycleQD:
    """One archive per task, in which that task is quality and the others are behaviour.

    Everyone competes in all archives. In generation t parents come from the archive of task
    ``t modulo tasks``, drawn in proportion to the product of its quality and its cells' numbers,
    each scaled to [0.5, 1.3] over the archive (the paper's elite sampling); an archive with one
    member is filled up with those of the others. The paper rotates after every child, here after
    every generation.

    Args:
        cells: per task.
        low: score at which the first cell begins; all below belong to it.
        high: score at which the last cell ends; all above belong to it.
        elite_sampling: false: parents are drawn uniformly from the archive.

    Raises:
        ValueError: an option without meaning.

    Source: Kuroki et al. 2024, Agent skill acquisition for LLMs via CycleQD, arXiv 2410.14735,
        sections 3.1 and 3.4; the range of elite sampling as in its released code.
    """

    cells: int = 5
    low: float = 0.0
    high: float = 1.0
    elite_sampling: bool = True
    reads_cases = False

    def __post_init__(self) -> None:
        ArchiveGrid(self.cells, self.low, self.high)

    def check_objectives(self, count: int) -> None:
        """Refuses a single number."""
        _check_objectives("CycleQD", count)

    def check_cases(self, outcomes: Sequence[Outcome], members: Sequence[Individual]) -> None:
        """Reads none."""

    def survivors(self, individuals: Sequence[Individual]) -> list[Individual]:
        """Returns who is elite in at least one archive."""
        kept = {
            one.id: one
            for task in range(individuals[0].fitness.size)
            for one in self.archive(individuals, task).values()
        }
        return [kept[number] for number in sorted(kept)]

    def archive(
        self, individuals: Sequence[Individual], task: int
    ) -> dict[tuple[int, ...], Individual]:
        """Returns cell to elite: best at `task` among those alike at the other tasks."""
        grid = ArchiveGrid(self.cells, self.low, self.high)
        return _elites(
            individuals,
            lambda one: grid.cell(np.delete(one.fitness, task)),
            lambda one: float(one.fitness[task]),
        )

    def pairing(
        self, members: Sequence[Individual], generation: int
    ) -> Callable[[np.random.Generator], Pair]:
        """Returns what draws two elites of the archive whose turn it is."""
        task = generation % members[0].fitness.size
        archive = self.archive(members, task)
        if len(archive) < 2:
            return _drawing(members, np.ones(len(members)))
        elites = list(archive.values())
        weights = np.ones(len(elites))
        if self.elite_sampling:
            qualities = np.array([[float(one.fitness[task])] for one in elites])
            numbers = np.array(list(archive), np.float64)
            weights = _elite_weights(np.concatenate([qualities, numbers], axis=1))
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


def _elite_weights(columns: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Vector:
    """Returns ``prod_c (0.5 + 0.8 (x_c - min) / (max - min))`` per row; 1 where all are equal."""
    weights = np.ones(len(columns))
    for column in columns.T:
        span = column.max() - column.min()
        if span > 0:
            weights *= 0.5 + 0.8 * (column - column.min()) / span
    return weights


def _drawing(
    members: Sequence[Individual], weights: Vector
) -> Callable[[np.random.Generator], Pair]:
    def draw(rng: np.random.Generator) -> Pair:
        first, second = rng.choice(len(members), 2, replace=False, p=weights / weights.sum())
        return members[first], members[second]

    return draw


def _check_objectives(population: str, count: int) -> None:
    if count < 2:
        raise ValueError(
            f"{population} needs a number for each of at least two tasks, the objective has "
            f"{count}: choose the objective Pareto and several tasks, or the population Truncation"
        )
