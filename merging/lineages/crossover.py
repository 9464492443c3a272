"""Crossovers of task vectors: a child of two parents, repeated by its numbers and seeds.

All act on individual minus base, one tensor at a time and within it block by block; mutations are
in `merging.lineages.mutation`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from merging.lineages.chance import (
    MASK_LEVELS,
    fraction,
    level,
    mask,
    set_float,
    set_fraction,
    set_int,
)
from merging.lineages.slices import EntryRange, TensorSlice
from merging.rules.spherical import slerp_factors
from merging.seeding import stable_seed

Side: TypeAlias = Literal[0, 1]
"""Which parent: 0 the first, 1 the second."""


class Moments(NamedTuple):
    """Of two parents' vectors in one tensor, float64: squared lengths and inner product."""

    first: float
    second: float
    inner: float


class CrossoverOperator(Protocol):
    """Makes a child of two parents; a frozen dataclass of numbers and seeds.

    Attributes:
        measures: whether `apply` reads the moments.
    """

    measures: ClassVar[bool]

    @property
    def identity_parent(self) -> Side | None:
        """The parent that the child equals in every model; None: it is of both."""
        ...

    def single_parent(self, tensor: TensorSlice) -> Side | None:
        """Returns the parent whose tensor the child takes as it is; None: it is of both."""
        ...

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns the child's entries in a block, ``(entries,)`` float32; changes no argument.

        Args:
            moments: of the parents in the whole tensor.
        """
        ...


@dataclass(frozen=True)
class _Draw:
    """What random crossovers have in common: the probability of the first parent."""

    seed: int
    share: float = 0.5

    def __post_init__(self) -> None:
        set_int(self, "seed")
        set_fraction(self, "share")


@dataclass(frozen=True)
class UniformCrossover(_Draw):
    """Each entry from the first parent with probability `share`, else from the second.

    Source: Syswerda 1989, Uniform crossover in genetic algorithms.
    """

    measures: ClassVar[bool] = False

    @property
    def identity_parent(self) -> Side | None:
        """A parent where the share is 0 or 1."""
        return _parent_of_weight(level(self.share) / MASK_LEVELS)

    def single_parent(self, tensor: TensorSlice) -> Side | None:
        """None: entries are mixed."""
        return None

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns the first parent's entries where the mask is set, else the second's."""
        chosen = mask(self.share, block, "uniform", self.seed, first)
        a, b = first.view(torch.int32), second.view(torch.int32)
        # (m and (a xor b)) xor b: on bits, several times faster than torch.where
        return chosen.bitwise_and_(a ^ b).bitwise_xor_(b).view(torch.float32)


@dataclass(frozen=True)
class PointCrossover:
    """Segments of both parents by turns: first, second, first ...; one-point, two-point ...

    Args:
        cuts: where the parent changes, fractions in [0, 1]; kept in rising order. A fraction c
            lies before entry ``round(c total)``, or before layer ``round(c layers)``.
        over: ``vector``, the flattened task vector in the order of the pool's tensors, or
            ``layers``, whole layers; see `slices.tensor_slices` for tensors outside them.

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
    def identity_parent(self) -> Side | None:
        """A parent where no segment of the other has any length."""
        bounds = (0.0, *self.cuts, 1.0)
        sides = {i % 2 for i in range(len(bounds) - 1) if bounds[i] < bounds[i + 1]}
        return _side(sides.pop()) if len(sides) == 1 else None

    def single_parent(self, tensor: TensorSlice) -> Side | None:
        """The one parent of a tensor that no cut divides."""
        if self.over == "layers":
            return _side(sum(round(cut * tensor.layers) <= tensor.layer for cut in self.cuts))
        sides = {side for side, _, _ in self._segments(tensor, 0, tensor.entries)}
        return None if len(sides) > 1 else _side(sides.pop() if sides else 0)

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns the segments of both parents by turns."""
        parents, offset = (first, second), block.start
        segments = self._segments(block.tensor, block.start, block.stop)
        return torch.cat(
            [parents[i][start - offset : stop - offset] for i, start, stop in segments]
        )

    def _segments(self, tensor: TensorSlice, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Returns (side, start, stop) of the segments in a range of entries, none empty."""
        ends = [round(cut * tensor.total) - tensor.offset for cut in self.cuts] + [stop]
        segments = []
        for number, end in enumerate(ends):
            if start < (end := min(end, stop)):
                segments.append((number % 2, start, end))
                start = end
        return segments


@dataclass(frozen=True)
class TensorCrossover(_Draw):
    """Each tensor from the first parent with probability `share`, else from the second."""

    measures: ClassVar[bool] = False

    @property
    def identity_parent(self) -> Side | None:
        """A parent where the share is 0 or 1."""
        return _parent_of_weight(self.share)

    def single_parent(self, tensor: TensorSlice) -> Side:
        """The drawn parent."""
        drawn = stable_seed("per tensor", self.seed, tensor.name)
        return 0 if drawn < self.share * 2**63 else 1

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns the drawn parent's entries."""
        return (first, second)[self.single_parent(block.tensor)]


@dataclass(frozen=True)
class _Blend:
    """What blends have in common: a real weight of the first parent, and no single parent."""

    weight: float

    def __post_init__(self) -> None:
        set_float(self, "weight")

    @property
    def identity_parent(self) -> Side | None:
        """A parent where the weight is 0 or 1."""
        return _parent_of_weight(self.weight)

    def single_parent(self, tensor: TensorSlice) -> Side | None:
        """None: parents are blended."""
        return None


@dataclass(frozen=True)
class ArithmeticCrossover(_Blend):
    """``weight * first + (1 - weight) * second``, any real weight: beyond 0 and 1 it extrapolates.

    Source: Michalewicz 1992, Genetic algorithms + data structures = evolution programs, ch. 5.
    """

    measures: ClassVar[bool] = False

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns ``w first + (1 - w) second``."""
        return _blend(first, second, self.weight, 1 - self.weight)


@dataclass(frozen=True)
class SlerpCrossover(_Blend):
    """Spherical interpolation of the two task vectors in every tensor: weight 1 is the first.

    ``sin(w O)/sin(O) first + sin((1 - w) O)/sin(O) second``, O the angle between them; where they
    are parallel, opposite or zero: ``w first + (1 - w) second``. Any real weight.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3.
    """

    measures: ClassVar[bool] = True

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns the point on the parents' great circle."""
        return _blend(first, second, *slerp_factors(*moments, self.weight))


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
        set_fraction(self, "cut")
        set_float(self, "weight")

    @property
    def identity_parent(self) -> Side | None:
        """A parent where the weight is 0 or 1 and the cut at an end."""
        if self.cut in (0.0, 1.0):
            return _parent_of_weight(self.weight if self.cut == 1 else 1 - self.weight)
        return None

    def single_parent(self, tensor: TensorSlice) -> Side | None:
        """None: parents are blended."""
        return None

    def apply(self, block: EntryRange, first: Tensor, second: Tensor, moments: Moments) -> Tensor:
        """Returns the points on the parents' great circle, of w before the cut, 1 - w after it."""
        before = slerp_factors(*moments, self.weight)
        after = slerp_factors(*moments, 1 - self.weight)
        cut = round(self.cut * block.tensor.total) - block.tensor.offset - block.start
        if cut <= 0 or cut >= len(first):
            return _blend(first, second, *(after if cut <= 0 else before))
        left = _blend(first[:cut], second[:cut], *before)
        return torch.cat((left, _blend(first[cut:], second[cut:], *after)))


def _blend(first: Tensor, second: Tensor, weight: float, other_weight: float) -> Tensor:
    return (first * weight).add_(second, alpha=other_weight)


def _parent_of_weight(weight: float) -> Side | None:
    """Returns the first parent for a weight of 1, the second for 0, None between."""
    if weight in (0, 1):
        return 0 if weight == 1 else 1
    return None


def _side(number: int) -> Side:
    return 1 if number % 2 else 0
