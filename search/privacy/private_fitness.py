"""Fitness of private items: clipped contributions, summed, with secret discrete noise.

In neighbouring data sets one item is replaced by one that contributes nothing. An item contributes
to one number only, by at most the clip; the number of items is public, and so is the mean size of
texts where a score is per byte or word.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluators.evaluator import Score
from merging.arrays import Vector
from search.checks import check_positive
from search.objective import BoundObjective
from search.privacy.private_noise import SecretNoise, laplace_scale, largest_part

_UNASKED = Score(math.nan, np.empty(0))


@dataclass(frozen=True)
class Shares:
    """How the items of every task add up to a fitness: ``sum_i factor gain_i / divisor``.

    One objective: an item of task t weighs ``w_t n / n_t`` in a sum over all n items. Several:
    every task has a sum of its own.

    Args:
        objective: bound, of weighted terms; its gains must not be normalised by private scores.
        sizes: task to the number of its items, all that a sample is drawn from.
        rate: share of the items that a sample has in expectation, in (0, 1].
    """

    objective: BoundObjective
    sizes: Mapping[str, int]
    rate: float = 1.0

    @property
    def divisors(self) -> tuple[float, ...]:
        """Expected number of items in the sum of each objective."""
        sizes = [self.sizes[term.task] for term in self.objective.terms]
        if self.objective.weights is None:
            return tuple(self.rate * size for size in sizes)
        return (self.rate * sum(sizes),)

    def contributions(self, scores: Mapping[str, Score]) -> list[Vector]:
        """Returns the sampled items' contributions to each objective, not clipped.

        A task without sampled items has no score. What is not finite contributes minus infinity,
        so that clipping makes it the worst; it does not touch other items.
        """
        terms = self.objective.terms
        total = sum(self.sizes[term.task] for term in terms)
        parts: list[Vector] = []
        for number, term in enumerate(terms):
            factor = 1.0
            if self.objective.weights is not None:
                # w_t n / n_t
                factor = self.objective.weights[number] * total / self.sizes[term.task]
            score = scores.get(term.key, _UNASKED)
            if score.cases is None or not score.own_cases:
                raise ValueError(
                    f"{term.key} has no score per item that is the item's alone, so that "
                    "its part cannot be bounded: choose another metric with objective.metrics"
                )
            gains = factor * term.case_gains(score.cases)
            parts.append(np.where(np.isfinite(gains), gains, -math.inf))
        return parts if self.objective.weights is None else [np.concatenate(parts)]


@dataclass(frozen=True)
class ClippedSum:
    """The one mechanism: ``sum_i clip(x_i, -C, C)`` in whole units of a grid, and noise.

    Every contribution is rounded to the grid by itself, so that sums are exact and an item more
    or less changes them by at most `part` units, as long as it touches no other item's score: one
    request a pass, as private searches ask in half precision. Batches in float32 let it move each
    of n others by about 1e-6, so that C should be far above n 1e-6; batch_tokens=1 leaves nothing
    of that. The discrete Gaussian noise has a standard
    deviation of SCALE units, at least sigma times as much.

    Args:
        noise_multiplier: sigma.
        noise: secret.
    """

    clip: float
    noise_multiplier: float
    noise: SecretNoise

    def __post_init__(self) -> None:
        check_positive(clip=self.clip, noise_multiplier=self.noise_multiplier)

    @cached_property
    def part(self) -> int:
        """Most that an item contributes, in units of the grid."""
        return largest_part(self.noise_multiplier)

    @property
    def unit(self) -> float:
        """The grid's unit, in that of the contributions."""
        return self.clip / self.part

    def sum(self, contributions: Vector) -> int:
        """Returns the clipped sum itself, which is private, in units of the grid."""
        clipped = np.clip(contributions / self.unit, -self.part, self.part)
        return int(np.rint(clipped).astype(np.int64).sum())  # sum_i clip(x_i, -C, C) / unit

    def release(self, contributions: Vector, *question: str | int) -> float:
        """Returns the noisy sum, a whole number of units; a question always has the same noise.

        Args:
            contributions: ``(items,)`` of the sampled items; may be empty.
            question: what the sum answers, different for every other one.
        """
        (noise,) = self.noise.gaussian(1, *question)
        return (self.sum(contributions) + int(noise)) * self.unit

    def reading(self, contributions: Vector, epsilon: float, *question: str | int) -> float:
        """Returns the sum with discrete Laplace noise instead, epsilon-private by itself."""
        noise = self.noise.laplace(laplace_scale(self.part, epsilon), "reading", *question)
        return (self.sum(contributions) + noise) * self.unit


def noisy_means(
    candidates: Sequence[Sequence[Vector]],
    divisors: Sequence[float],
    mechanism: ClippedSum,
    question: tuple[str | int, ...],
) -> list[Vector]:
    """Returns the noisy fitness of every candidate of a generation, ``(objectives,)`` each.

    All are asked the same items, so one item changes all: the generation is one Gaussian
    mechanism with the multiplier ``noise_multiplier / sqrt(candidates)``.

    Args:
        candidates: each candidate's contributions to each objective.
        divisors: expected number of items in each objective's sum.
        question: names the generation and its genomes.
    """
    return [
        np.array(
            [
                mechanism.release(sampled, *question, "mean", number, objective) / divisor
                for objective, (sampled, divisor) in enumerate(zip(parts, divisors, strict=True))
            ]
        )
        for number, parts in enumerate(candidates)
    ]


def noisy_differences(
    pairs: Sequence[tuple[Vector, Vector]],
    divisor: float,
    mechanism: ClippedSum,
    question: tuple[str | int, ...],
) -> list[tuple[float, float]]:
    """Returns fitness ``s / 2`` and ``-s / 2`` of every pair: only their difference s is known.

    ``s = (sum_i clip(x_i+ - x_i-, -C, C) + N(0, sigma^2 C^2)) / divisor``, on the grid of
    `ClippedSum`: one scalar mechanism per pair. A generation of p pairs has the multiplier
    ``noise_multiplier / sqrt(p)``.

    Args:
        divisor: expected number of items.
        question: names the generation and its genomes.

    Source: DP-ZO, arXiv:2401.04343, algorithm 1, with add/remove neighbours (sensitivity C; the
    factor 2 of the related DPZero is that of replace-one).
    """
    released = []
    for number, (plus, minus) in enumerate(pairs):
        difference = mechanism.release(item_differences(plus, minus), *question, "pair", number)
        released.append((difference / divisor / 2, -difference / divisor / 2))  # s / 2, -s / 2
    return released


def item_differences(plus: Vector, minus: Vector) -> Vector:
    """Returns the items' differences, ``(items,)``; an item that both sides fail makes none."""
    both = np.isneginf(plus) & np.isneginf(minus)
    difference: Vector = np.where(both, 0.0, plus) - np.where(both, 0.0, minus)
    return difference
