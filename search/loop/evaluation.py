"""How a generation is scored: the interface, and the plain way, one candidate after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from merging.method import MergeError
from search.loop.history import Record
from search.strategy import G

H = TypeVar("H", contravariant=True)


@dataclass(frozen=True, eq=False)
class FitnessEstimate:
    """Fitness of a candidate that was not asked all items, or that is not what its scores say.

    Args:
        fitness: ``(objectives,)``, what it would be on all items.
        cases: ``(cases,)`` per-item scores, estimated where not asked; None: not known.
        asked: on how many items it rests; None: it takes the place of a fitness on all items, as
            a noisy one does.
    """

    fitness: Vector
    cases: Vector | None
    asked: int | None


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What the evaluation of one candidate gave.

    Args:
        scores: by ``task/metric``; empty where it failed.
        failure: why it failed; None: it did not.
        seconds: time it took; a share of it where several were scored together.
        estimate: of the fitness, where `scores` are not those of all items.
    """

    scores: Mapping[str, Score] = field(default_factory=dict)
    failure: str | None = None
    seconds: float = 0.0
    estimate: FitnessEstimate | None = None


class Evaluation(Protocol[H]):
    """Scores whole generations; the loop knows nothing of models, items and devices."""

    @property
    def own_items(self) -> bool:
        """Whether every generation is scored on items of its own."""
        ...

    @property
    def unit(self) -> int:
        """How many genomes in a row are scored together; see `units`."""
        ...

    def __call__(
        self, genomes: Sequence[H], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what genome `first` gave, then the next, in order.

        What a genome gives depends on `genomes`, `generation` and `records` alone, not on
        `first`: a search that was killed within a generation goes on with the same numbers. The
        loop may stop reading at any time, and what is behind is then not worked on.

        Args:
            genomes: all of the generation that had not been evaluated before.
            generation: its number from 0, earlier sessions included.
            records: of all earlier generations.
            first: how many of `genomes` an earlier session has written down.
        """
        ...


@dataclass(frozen=True)
class OneByOne(Generic[G]):
    """Scores one genome after the other.

    Args:
        score: of a genome, by ``task/metric``.
    """

    score: Callable[[G], Mapping[str, Score]]
    own_items = False
    unit = 1

    def __call__(
        self, genomes: Sequence[G], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what each gave; see `Evaluation`."""
        for genome in genomes[first:]:
            yield attempt(self.score, genome)


@dataclass(frozen=True)
class ByGeneration(Generic[G]):
    """Scores every generation on items of its own, the same for all of its candidates.

    Args:
        score: of a genome on the items of a generation, by its number from 0.
    """

    score: Callable[[G, int], Mapping[str, Score]]
    own_items = True
    unit = 1

    def __call__(
        self, genomes: Sequence[G], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what each gave; see `Evaluation`."""
        for genome in genomes[first:]:
            yield attempt(lambda each: self.score(each, generation), genome)


def attempt(score: Callable[[G], Mapping[str, Score]], genome: G) -> Evaluated:
    """Returns what scoring gave; a model that cannot be scored is a failure, not an error."""
    began = time.perf_counter()
    scores: Mapping[str, Score] = {}
    failure: str | None = None
    try:
        scores = score(genome)
    except (EvaluationError, MergeError) as error:
        failure = str(error) or type(error).__name__
    except (MemoryError, torch.cuda.OutOfMemoryError):
        failure = "out of memory"
    return Evaluated(scores, failure, time.perf_counter() - began)


def units(count: int, size: int, first: int = 0) -> list[range]:
    """Returns the places of every unit that has one from `first` on; borders do not depend on it.

    Example:
        >>> units(7, 3, first=4)
        [range(3, 6), range(6, 7)]
    """
    begin = first - first % size
    return [range(a, min(a + size, count)) for a in range(begin, count, size)]
