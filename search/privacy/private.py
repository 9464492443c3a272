"""A search on private items: strategy, history and every file see noisy fitness alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from evaluators.evaluator import Score
from merging.arrays import Vector
from search.loop.evaluation import Batch, Evaluated, Evaluation, FitnessEstimate, attempt, batches
from search.loop.pool import TaskQueue, run_all
from search.privacy.private_fitness import ClippedSum, Shares, noisy_differences, noisy_means
from search.strategy import G

Release: TypeAlias = Literal["means", "differences"]
"""What a generation releases: every candidate's mean, or every pair's difference."""

_NONE: Vector = np.empty(0)


@dataclass(eq=False)
class PrivatePool(TaskQueue[Batch[G]]):
    """Another evaluation whose scores never leave it: what comes out is noisy fitness.

    A whole generation is scored even where a killed session has written down a part of it: the
    noise belongs to the generation, its genomes and the items, so what was written comes out
    again and nothing new is released. Per-item scores, task scores and messages are dropped.

    A candidate that cannot be scored is asked item by item, and the items that fail count as
    the worst that clipping allows: a failure decided by one item would be a release of its own.
    Weights that cannot be computed depend on no item and are a plain failure.

    Args:
        inner: scores the generation's own sample of the private items.
        singly: scores a genome on every item of a generation's sample by itself; an item that
            cannot be scored is NaN. Called where `inner` fails, or the sample is empty: then it
            only computes the weights, as whether they can be must not tell of the sample.
        empty: whether a generation's sample has no item at all; `inner` is not asked then.
        shares: how items add up to a fitness.
        release: what is released.
    """

    inner: Evaluation[G]
    singly: Callable[[G, int], Mapping[str, Score]]
    empty: Callable[[int], bool]
    shares: Shares
    mechanism: ClippedSum
    release: Release
    encode: Callable[[G], Any]

    @property
    def evaluation(self) -> Evaluation[G]:
        """This pool, which takes whole generations; differences of two cannot be compared."""
        own_items = self.inner.own_items or self.release == "differences"
        return Evaluation(self, own_items, batch_size=None)

    def releases(self, genomes: int) -> int:
        """Returns how many noisy numbers one item can change in a generation of new genomes."""
        return genomes if self.release == "means" else genomes // 2

    def next(self) -> tuple[int, list[Evaluated]]:
        """Returns the noisy fitness of the first generation in the line."""
        ticket, batch = self._take()
        genomes, generation = batch.genomes, batch.generation
        if self.release == "differences" and len(genomes) % 2:
            raise ValueError(
                f"generation {generation} has {len(genomes)} new genomes, which make no pairs: "
                "differences need a strategy that asks for pairs, such as DpZo"
            )
        question = ("generation", generation, json.dumps([self.encode(g) for g in genomes]))
        scored = self._scored(batch)
        complete = [scores is not None for _, scores in scored]
        parts = [self.shares.contributions(scores or {}) for _, scores in scored]
        values = self._noisy(parts, question)
        if self.release == "differences":  # one side alone says nothing
            complete = [complete[i] and complete[i ^ 1] for i in range(len(complete))]
        return ticket, [
            Evaluated({}, None, seconds, FitnessEstimate(value, None, None))
            if good
            else Evaluated({}, "its weights cannot be computed", seconds)
            for (seconds, _), value, good in zip(scored, values, complete, strict=True)
        ]

    def _scored(self, batch: Batch[G]) -> list[tuple[float, Mapping[str, Score] | None]]:
        """Returns seconds and un-noised scores of every genome; None: no weights."""
        if self.empty(batch.generation):
            return [self._singly(genome, batch.generation) for genome in batch.genomes]
        tasks = [
            replace(batch, genomes=batch.genomes[positions.start : positions.stop])
            for positions in batches(len(batch.genomes), self.inner.batch_size)
        ]
        results = [one for several in run_all(self.inner.pool, tasks) for one in several]
        scored: list[tuple[float, Mapping[str, Score] | None]] = []
        for genome, evaluated in zip(batch.genomes, results, strict=True):
            seconds, scores = evaluated.seconds, evaluated.scores
            if evaluated.failure is not None:
                more, alone = self._singly(genome, batch.generation)
                scored.append((seconds + more, alone))
            else:
                scored.append((seconds, scores))
        return scored

    def _singly(self, genome: G, generation: int) -> tuple[float, Mapping[str, Score] | None]:
        scores: Mapping[str, Score] | None = None
        with attempt() as tried:
            scores = self.singly(genome, generation)
        return tried.seconds, scores

    def _noisy(
        self, parts: Sequence[Sequence[Vector]], question: tuple[str | int, ...]
    ) -> list[Vector]:
        divisors = self.shares.divisors
        if self.release == "means":
            return noisy_means(parts, divisors, self.mechanism, question)
        pairs = [(parts[i][0], parts[i + 1][0]) for i in range(0, len(parts), 2)]
        pairs = [pair if len(pair[0]) == len(pair[1]) else (_NONE, _NONE) for pair in pairs]
        differences = noisy_differences(pairs, divisors[0], self.mechanism, question)
        return [np.array([value]) for pair in differences for value in pair]
