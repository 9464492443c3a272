"""Crossovers of task vectors: a child of two parents, repeated by its numbers and seeds.

All act on individual minus base, one tensor at a time and within it chunk by chunk; mutations are
in `merging.lineages.mutation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from merging.lineages.chance import (
    SHARES,
    fraction,
    make_fraction,
    make_real,
    make_whole,
    mask,
    threshold,
)
from merging.lineages.slices import EntryRange, TensorSlice
from merging.rules.spherical import slerp_factors
from merging.seeding import stable_seed

Side: TypeAlias = Literal[0, 1]
"""Which parent: 0 the first, 1 the second."""

Crossing: TypeAlias = Callable[[EntryRange, Tensor, Tensor], Tensor]
"""A chunk and both parents' entries in it, ``(entries,)`` float32, to the child's."""


class Moments(NamedTuple):
    """Of two parents' vectors in one tensor, float64: squared lengths and inner product."""

    first: float
    second: float
    inner: float


class CrossoverOperator(Protocol):
    """Makes a child of two parents; a frozen dataclass of numbers and seeds.

    Attributes:
        measures: whether `crossing` reads the moments.
    """

    measures: ClassVar[bool]

    @property
    def sole(self) -> Side | None:
        """The parent that the child is, in every model; None: it is of both."""
        ...

    def source(self, place: TensorSlice) -> Side | None:
        """Returns the parent whose tensor the child takes as it is; None: it is of both."""
        ...

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child in one tensor; it changes no argument."""
        ...


@dataclass(frozen=True)
class UniformCrossover:
    """Each entry from the first parent with probability `share`, else from the second.

    Source: Syswerda 1989, Uniform crossover in genetic algorithms.
    """

    seed: int
    share: float = 0.5
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        make_whole(self, "seed")
        make_fraction(self, "share")

    @property
    def sole(self) -> Side | None:
        """A parent where the share is 0 or 1."""
        return _end(threshold(self.share) / SHARES)

    def source(self, place: TensorSlice) -> Side | None:
        """None: entries are mixed."""
        return None

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child; see `CrossoverOperator.crossing`."""

        def cross(chunk: EntryRange, first: Tensor, second: Tensor) -> Tensor:
            taken = mask(self.share, chunk, first, "uniform", self.seed, place.tensor)
            # Bits are chosen instead of numbers: several times faster than torch.where.
            a, b = first.view(torch.int32), second.view(torch.int32)
            return taken.bitwise_and_(a ^ b).bitwise_xor_(b).view(torch.float32)

        return cross


@dataclass(frozen=True)
class PointCrossover:
    """Segments of both parents by turns: first, second, first ...; one-point, two-point ...

    Args:
        cuts: where the parent changes, fractions in [0, 1]; kept in rising order. A fraction c
            lies before entry ``round(c total)``, or before layer ``round(c layers)``.
        over: ``vector``, the flattened task vector in the order of the pool's tensors, or
            ``layers``, whole layers; see `slices.places` for tensors outside them.

    Source: Holland 1975, Adaptation in natural and artificial systems, section 6.2.
    """

    cuts: tuple[float, ...]
    over: Literal["vector", "layers"] = "vector"
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.cuts, tuple | list) or not self.cuts:
            raise ValueError(f"cuts must be one or more fractions in [0, 1], got {self.cuts!r}")
        cuts = tuple(sorted(fraction("cuts", cut) for cut in self.cuts))
        object.__setattr__(self, "cuts", cuts)
        if self.over not in ("vector", "layers"):
            raise ValueError(f"over must be 'vector' or 'layers', got {self.over!r}")

    @property
    def sole(self) -> Side | None:
        """A parent where no segment of the other has any length."""
        bounds = (0.0, *self.cuts, 1.0)
        sides = {i % 2 for i in range(len(bounds) - 1) if bounds[i] < bounds[i + 1]}
        return _side(sides.pop()) if len(sides) == 1 else None

    def source(self, place: TensorSlice) -> Side | None:
        """The one parent of a tensor that no cut divides."""
        if self.over == "layers":
            return _side(sum(round(cut * place.layers) <= place.layer for cut in self.cuts))
        sides = {side for side, _, _ in self._segments(place, 0, place.entries)}
        return None if len(sides) > 1 else _side(sides.pop() if sides else 0)

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child; see `CrossoverOperator.crossing`."""

        def cross(chunk: EntryRange, first: Tensor, second: Tensor) -> Tensor:
            parents = first, second
            segments = self._segments(place, chunk.start, chunk.stop)
            return torch.cat(
                [
                    parents[side][start - chunk.start : stop - chunk.start]
                    for side, start, stop in segments
                ]
            )

        return cross

    def _segments(self, place: TensorSlice, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Returns (side, start, stop) of the segments in a range of entries, none empty."""
        ends = [round(cut * place.total) - place.offset for cut in self.cuts] + [stop]
        found = []
        for number, end in enumerate(ends):
            if start < (end := min(end, stop)):
                found.append((number % 2, start, end))
                start = end
        return found


@dataclass(frozen=True)
class TensorCrossover:
    """Each tensor whole from the first parent with probability `share`, else from the second."""

    seed: int
    share: float = 0.5
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        make_whole(self, "seed")
        make_fraction(self, "share")

    @property
    def sole(self) -> Side | None:
        """A parent where the share is 0 or 1."""
        return _end(self.share)

    def source(self, place: TensorSlice) -> Side:
        """The drawn parent."""
        drawn = stable_seed("per tensor", self.seed, place.tensor)
        return 0 if drawn < self.share * 2**63 else 1

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child; see `CrossoverOperator.crossing`."""
        side = self.source(place)
        return lambda chunk, first, second: (first, second)[side]


@dataclass(frozen=True)
class ArithmeticCrossover:
    """``weight * first + (1 - weight) * second``, any real weight: beyond 0 and 1 it extrapolates.

    Source: Michalewicz 1992, Genetic algorithms + data structures = evolution programs, ch. 5.
    """

    weight: float
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        make_real(self, "weight")

    @property
    def sole(self) -> Side | None:
        """A parent where the weight is 0 or 1."""
        return _end(self.weight)

    def source(self, place: TensorSlice) -> Side | None:
        """None: parents are blended."""
        return None

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child; see `CrossoverOperator.crossing`."""
        return lambda chunk, first, second: _blend(first, second, self.weight, 1 - self.weight)


@dataclass(frozen=True)
class SlerpCrossover:
    """Spherical interpolation of the two task vectors in every tensor: weight 1 is the first.

    ``sin(w O)/sin(O) first + sin((1 - w) O)/sin(O) second``, O the angle between them; where they
    are parallel, opposite or zero: ``w first + (1 - w) second``. Any real weight.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3.
    """

    weight: float
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        make_real(self, "weight")

    @property
    def sole(self) -> Side | None:
        """A parent where the weight is 0 or 1."""
        return _end(self.weight)

    def source(self, place: TensorSlice) -> Side | None:
        """None: parents are blended."""
        return None

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child; see `CrossoverOperator.crossing`."""
        left, right = slerp_factors(*moments, self.weight)
        return lambda chunk, first, second: _blend(first, second, left, right)


@dataclass(frozen=True)
class SplitSlerpCrossover:
    """`SlerpCrossover` with `weight` before the cut of the task vector, ``1 - weight`` after it.

    Args:
        cut: fraction in [0, 1]; it lies before entry ``round(cut total)``.
        weight: of the first parent before the cut, and of the second after it.

    Source: Abrantes, Lange, Tang 2025, Competition and attraction improve model fusion (M2N2),
    arXiv 2508.16204, and its code. There weights are interpolated with one angle over the whole
    model; here task vectors, with an angle for every tensor.
    """

    cut: float
    weight: float
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        make_fraction(self, "cut")
        make_real(self, "weight")

    @property
    def sole(self) -> Side | None:
        """A parent where the weight is 0 or 1 and the cut at an end."""
        if self.cut in (0.0, 1.0):
            return _end(self.weight if self.cut == 1 else 1 - self.weight)
        return None

    def source(self, place: TensorSlice) -> Side | None:
        """None: parents are blended."""
        return None

    def crossing(self, place: TensorSlice, moments: Moments) -> Crossing:
        """Returns what computes the child; see `CrossoverOperator.crossing`."""
        before = slerp_factors(*moments, self.weight)
        after = slerp_factors(*moments, 1 - self.weight)
        bound = round(self.cut * place.total) - place.offset

        def cross(chunk: EntryRange, first: Tensor, second: Tensor) -> Tensor:
            at = min(max(bound - chunk.start, 0), len(first))
            if at in (0, len(first)):
                return _blend(first, second, *(after if at == 0 else before))
            halves = (
                _blend(first[:at], second[:at], *before),
                _blend(first[at:], second[at:], *after),
            )
            return torch.cat(halves)

        return cross


def _blend(first: Tensor, second: Tensor, left: float, right: float) -> Tensor:
    return (first * left).add_(second, alpha=right)


def _end(weight: float) -> Side | None:
    """Returns the first parent for 1, the second for 0."""
    if weight in (0, 1):
        return 0 if weight == 1 else 1
    return None


def _side(number: int) -> Side:
    return 1 if number % 2 else 0
