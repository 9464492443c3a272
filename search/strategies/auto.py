"""CMA-ES that begins with few numbers and, where it stalls, goes on with more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from merging.arrays import Vector
from merging.seeding import stable_seed
from merging.spaces.axes import Axis, Choice
from merging.spaces.axes import start as start_of
from search.checks import check_at_least, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome


@dataclass(frozen=True)
class Step:
    """One stage of a search: its name, numbers that it moves, id of its first candidate."""

    name: str
    numbers: int
    first: int


class Auto:
    """CMA-ES in the coordinates of one stage after the other, each from the best point so far.

    Stages tie axes together: in the first the whole model may share its knobs, in the next every
    block of layers has its own. A stage ends when `patience` generations in a row have brought no
    better candidate, and only where the budget pays for `patience` generations of the next one.

    The last generation that the budget pays for begins with the mean of what CMA-ES went through:
    the mean over the later half of its generations of their recombined means. The best sample of
    a search on few items owes much to these items, the mean of many generations less.

    Args:
        seed: of every stage, with its name.
        stages: name to ``(axes,)``, for each axis the number of the coarser axis that it reads,
            from 0; each stage ties no more than the one before. None: one, in which all are free.
        sigma: first step, in units of each axis' own scale.
        narrower: first step of each further stage, as a share of that of the one before.
        patience: generations without a better candidate that end a stage.
        budget: evaluations to be expected; None: unknown, a stage ends whenever it stalls.

    Attributes:
        keeps: ids of the candidates that are always looked at again: the start, and the mean
            once it was asked, which is named where there are no items to look at again.
        spent: evaluations of the budget that went into the choice of the start.
    """

    compares_generations = True

    def __init__(
        self,
        *,
        axes: tuple[Axis, ...],
        seed: int,
        stages: Mapping[str, Sequence[int]] | None = None,
        sigma: float = 1.0,
        narrower: float = 0.5,
        patience: int = 3,
        budget: int | None = None,
    ) -> None:
        if not axes:
            raise ValueError("the space has no axis; there is nothing to search")
        check_positive(sigma=sigma, narrower=narrower)
        check_at_least(1, patience=patience, budget=budget)
        self._axes, self._seed, self._budget = tuple(axes), seed, budget
        self._sigma, self._narrower, self._patience = sigma, narrower, patience
        every = {"all": range(len(axes))} if stages is None else stages
        self._left = [(name, np.array(ties)) for name, ties in every.items()]
        self._ask_tell = AskTell[Vector](np.ndarray.copy)
        self.spent = 0
        self.keeps: tuple[int, ...] = (0,)
        self._means: list[Vector] = []
        self._steps: list[Step] = []
        self._stale = 0
        self._begin(start_of(self._axes))

    def ask(self) -> list[Candidate[Vector]]:
        """Returns the next generation, of the next stage where this one has ended."""
        self._ask_tell.check_told()
        if self._left and self._stale >= self._patience and self._pays():
            self._begin(self._ask_tell.best[0])
        asked = self._inner.ask()
        genomes = [one.genome[self._ties] for one in asked]
        means = [self._mean()] if self._means and self._left_over() <= len(asked) else []
        candidates = self._ask_tell.ask([*means, *genomes])
        self._first = candidates[len(means)].id
        self._offset = self._first - asked[0].id
        self._asked = {c.id: c.genome for c in candidates[len(means) :]}
        if means:
            self.keeps = (0, candidates[0].id)
        return candidates

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Tells the stage's CMA-ES, and counts generations that brought nothing better."""
        before = self._ask_tell.best_ids
        told = [one for one in self._ask_tell.tell(outcomes) if one.id >= self._first]
        self._inner.tell([replace(one, id=one.id - self._offset) for one in told])
        self._note_mean(told)
        better = self._ask_tell.best_ids != before
        self._stale = 0 if better or not self._ask_tell.best_ids else self._stale + 1

    def recommend(self) -> list[Vector]:
        """Returns the best genome told, or the non-dominated ones."""
        return self._ask_tell.best

    def story(self) -> list[str]:
        """Returns what was searched, stage by stage, and why one ended, in words."""
        words = [
            f"{step.name} ({step.numbers} numbers) from candidate {step.first} on"
            for step in self._steps
        ]
        for i in range(1, len(words)):
            words[i] = f"{self._patience} generations brought nothing better, so {words[i]}"
        if self._left and self._stale >= self._patience:
            words.append(f"the budget did not pay for {self._left[0][0]}")
        if len(self.keeps) > 1:
            words.append(f"candidate {self.keeps[1]} is the mean of the later half of generations")
        best = ", ".join(map(str, self._ask_tell.best_ids))
        return [*words, f"best on the search items: candidate {best or 'none'}"]

    def _left_over(self) -> float:
        """Returns how many evaluations the budget has left, at least."""
        if self._budget is None:
            return np.inf
        return self._budget - self.spent - self._ask_tell.candidates

    def _pays(self) -> bool:
        """Returns whether the budget has `patience` generations of the next stage left."""
        popsize = 4 + int(3 * np.log(_count(self._left[0][1])))
        return self._left_over() >= self._patience * popsize

    def _note_mean(self, told: Sequence[Outcome]) -> None:
        """Notes ``sum_k w_k x_k`` of a generation's better half, ``w_k ~ ln(mu + 1/2) - ln k``."""
        ranked = sorted(
            (-float(np.mean(one.fitness)), one.id) for one in told if one.fitness is not None
        )
        better = ranked[: max(1, len(told) // 2)]
        if better:
            weights = np.log(len(better) + 0.5) - np.log(np.arange(1, len(better) + 1))
            points = np.array([self._asked[number] for _, number in better])
            self._means.append(weights @ points / weights.sum())

    def _mean(self) -> Vector:
        """Returns the mean over the later half of generations; choices are those of the best."""
        mean: Vector = np.mean(self._means[len(self._means) // 2 :], axis=0)
        best = self._ask_tell.best[0]
        chosen = [isinstance(axis, Choice) for axis in self._axes]
        return np.where(chosen, best, mean)

    def _begin(self, genome: Vector) -> None:
        """Begins the next stage at a genome, ``(axes,)``."""
        from search.strategies.nevergrad_optimizer import NevergradStrategy  # takes a second

        name, self._ties = self._left.pop(0)
        firsts = [int(np.flatnonzero(self._ties == i)[0]) for i in range(_count(self._ties))]
        self._inner = NevergradStrategy(
            axes=tuple(_from(self._axes[i], float(genome[i])) for i in firsts),
            seed=stable_seed("auto", self._seed, name) % 2**32,
            sigma=self._sigma * self._narrower ** len(self._steps),
        )
        self._stale = 0
        self._steps.append(Step(name, len(firsts), self._ask_tell.candidates))


def _count(ties: Vector) -> int:
    return int(ties.max()) + 1


def _from(axis: Axis, value: float) -> Axis:
    """Returns the axis with another start."""
    if isinstance(axis, Choice):
        return replace(axis, start=int(value))
    return replace(axis, start=value)
