"""A search on private items: strategy, history and every file see noisy fitness alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias

import numpy as np

from evaluators.evaluator import Score
from merging.arrays import Vector
from search.loop.evaluation import Evaluated, Evaluation, FitnessEstimate, attempt
from search.loop.history import Record
from search.privacy.private_fitness import ClippedSum, Shares, noisy_differences, noisy_means
from search.strategy import G

Release: TypeAlias = Literal["means", "differences"]
"""What a generation releases: every candidate's mean, or every pair's difference."""

_NONE: Vector = np.empty(0)


@dataclass(frozen=True)
class PrivateEvaluation(Generic[G]):
    """Another evaluation whose scores never leave it: what it yields is noisy fitness.

    A whole generation is scored even where a killed session has written down a part of it: the
    noise belongs to the generation, its genomes and the items, so what was written comes out
    again and nothing new is released. Per-item scores, task scores and messages are dropped.

    A candidate that cannot be scored is asked item by item, and the items that fail count as
    the worst that clipping allows: a failure decided by one item would be a release of its own.
    Weights that cannot be computed depend on no item and are a plain failure.

    Args:
        inner: scores the generation's own sample of the private items.
        singly: scores a genome on every item of a generation's sample by itself; an item that
            cannot be scored is NaN. Called where `inner` fails.
        empty: whether a generation's sample has no item at all; it is not asked then.
        shares: how items add up to a fitness.
        mechanism: clip and noise.
        release: what is released.
        encode: genome to JSON values.
    """

    inner: Evaluation[G]
    singly: Callable[[G, int], Mapping[str, Score]]
    empty: Callable[[int], bool]
    shares: Shares
    mechanism: ClippedSum
    release: Release
    encode: Callable[[G], Any]

    @property
    def own_items(self) -> bool:
        """Whether fitness of different generations cannot be compared."""
        return self.inner.own_items or self.release == "differences"

    @property
    def unit(self) -> int:
        """How many genomes in a row are scored together."""
        return self.inner.unit

    def releases(self, genomes: int) -> int:
        """Returns how many noisy numbers one item can change in a generation of new genomes."""
        return genomes if self.release == "means" else genomes // 2

    def __call__(
        self, genomes: Sequence[G], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields the noisy fitness of each; see `Evaluation`.

        Raises:
            ValueError: differences are to be released, and the genomes are no pairs.
        """
        if self.release == "differences" and len(genomes) % 2:
            raise ValueError(
                f"generation {generation} has {len(genomes)} new genomes, which make no pairs: "
                "privacy=differences needs a strategy that asks for pairs, such as dp_zo"
            )
        question = ("generation", generation, json.dumps([self.encode(g) for g in genomes]))
        scored = list(self._scored(genomes, generation, records))
        whole = [each is not None for _, each in scored]
        parts = [self.shares.contributions(each or {}) for _, each in scored]
        values = self._noisy(parts, question)
        if self.release == "differences":  # one side alone says nothing
            whole = [whole[i] and whole[i ^ 1] for i in range(len(whole))]
        for (seconds, _), value, good in list(zip(scored, values, whole, strict=True))[first:]:
            if good:
                yield Evaluated({}, None, seconds, FitnessEstimate(value, None, None))
            else:
                yield Evaluated({}, "its weights cannot be computed", seconds)

    def _scored(
        self, genomes: Sequence[G], generation: int, records: Sequence[Record]
    ) -> Iterator[tuple[float, Mapping[str, Score] | None]]:
        """Yields seconds and un-noised scores of every genome; None: no weights."""
        if self.empty(generation):
            yield from ((0.0, {}) for _ in genomes)
            return
        found = self.inner(genomes, generation, records, 0)
        for genome, evaluated in zip(genomes, found, strict=True):
            if evaluated.failure is None:
                yield evaluated.seconds, evaluated.scores
                continue
            again = attempt(lambda each: self.singly(each, generation), genome)
            seconds = evaluated.seconds + again.seconds
            yield seconds, again.scores if again.failure is None else None

    def _noisy(
        self, parts: Sequence[Sequence[Vector]], question: tuple[str | int, ...]
    ) -> list[Vector]:
        divisors = self.shares.divisors
        if self.release == "means":
            return noisy_means(parts, divisors, self.mechanism, question)
        pairs = [(parts[i][0], parts[i + 1][0]) for i in range(0, len(parts), 2)]
        pairs = [pair if len(pair[0]) == len(pair[1]) else (_NONE, _NONE) for pair in pairs]
        found = noisy_differences(pairs, divisors[0], self.mechanism, question)
        return [np.array([value]) for pair in found for value in pair]
