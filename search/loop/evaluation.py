"""How candidates are scored: batches of genomes in, scores or the reason of a failure out."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError, TransientFailure, is_out_of_memory
from merging.arrays import Vector
from merging.method import MergeError
from search.loop.history import Record
from search.loop.pool import Pool, TaskQueue
from search.strategy import G

W = TypeVar("W")


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


@dataclass
class Attempt:
    """How an attempt to score a model went, waiting included; known when it has ended."""

    failure: str | None = None
    seconds: float = 0.0


@contextmanager
def attempt() -> Iterator[Attempt]:
    """Takes the time of a block; a model that cannot be scored is a failure, not an error.

    What is not the model's own fault goes through and ends the search: a failure is written down
    for good and told to the strategy, so that it has to be true whenever it is read.

    Raises:
        TransientFailure: for a reason outside of the model, such as memory that is taken.
    """
    began, tried = time.perf_counter(), Attempt()
    try:
        yield tried
    except (EvaluationError, MergeError) as error:
        tried.failure = str(error) or type(error).__name__
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, TransientFailure) or not is_out_of_memory(error):
            raise
        raise TransientFailure("out of memory") from error
    tried.seconds = time.perf_counter() - began


@dataclass(frozen=True, eq=False)
class Batch(Generic[G]):
    """Genomes of one generation that are scored as one task.

    What they give depends on the batch alone, so that a search that was killed within a
    generation goes on with the same numbers.

    Args:
        genomes: none of which was evaluated before.
        generation: its number from 0, earlier sessions included.
        records: of all earlier generations.
    """

    genomes: Sequence[G]
    generation: int = 0
    records: Sequence[Record] = ()


@dataclass(frozen=True, eq=False)
class Evaluation(Generic[G]):
    """How generations are scored; the loop knows nothing of models, items and devices.

    Args:
        pool: scores batches, one result per genome, in their order.
        own_items: whether every generation is scored on items of its own.
        batch_size: genomes of a batch; None: the whole generation is one.
    """

    pool: Pool[Batch[G], Sequence[Evaluated]]
    own_items: bool = False
    batch_size: int | None = 1


class LocalPool(TaskQueue[Batch[G]], Generic[G, W]):
    """Scores genomes in this process, one after the other.

    Args:
        decode: genome to what is scored.
        scorer: number of a generation to what scores on its items.
    """

    def __init__(
        self, decode: Callable[[G], W], scorer: Callable[[int], Callable[[W], Mapping[str, Score]]]
    ) -> None:
        super().__init__()
        self._decode = decode
        self._scorer = scorer

    def next(self) -> tuple[int, list[Evaluated]]:
        """Scores the first batch in the line."""
        ticket, batch = self._take()
        scorer = self._scorer(batch.generation)
        results = []
        for genome in batch.genomes:
            scores: Mapping[str, Score] = {}
            with attempt() as tried:
                scores = scorer(self._decode(genome))
            results.append(Evaluated(scores, tried.failure, tried.seconds))
        return ticket, results


def batches(count: int, size: int | None, first: int = 0) -> list[range]:
    """Returns the positions of every batch that has one from `first` on.

    Borders do not depend on `first`: what a batch rounds to is the same after a restart.

    Args:
        count: of genomes.
        size: of a batch; None: all are one.
        first: how many an earlier session has written down.

    Example:
        >>> batches(7, 3, first=4)
        [range(3, 6), range(6, 7)]
    """
    if first >= count:
        return []
    size = size or count
    return [range(a, min(a + size, count)) for a in range(first - first % size, count, size)]
