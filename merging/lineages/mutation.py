"""Mutations of task vectors: a child of one parent, repeated by its numbers and seed.

All act on individual minus base, one tensor at a time and within it chunk by chunk; crossovers are
in `merging.lineages.crossover`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from merging.lineages.chance import make_fraction, make_real, make_whole, mask, threshold
from merging.lineages.slices import EntryRange, TensorSlice
from merging.seeding import generator

Change: TypeAlias = Callable[[EntryRange, Tensor], Tensor]
"""A chunk and the parent's entries in it, ``(entries,)`` float32, to the child's."""


class Mutation(Protocol):
    """Makes a child of one parent; a frozen dataclass of numbers and seeds. Keeps zero at zero.

    Attributes:
        measures: whether `change` reads the square.
    """

    measures: ClassVar[bool]

    @property
    def idle(self) -> bool:
        """Whether the child is its parent."""
        ...

    def change(self, place: TensorSlice, square: float) -> Change:
        """Returns what computes the child in one tensor; it changes no argument.

        Args:
            place: of the tensor.
            square: squared length of the parent's vector in it.
        """
        ...


@dataclass(frozen=True)
class ScaleMutation:
    """``factor`` times the task vector, any real factor."""

    factor: float
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        make_real(self, "factor")

    @property
    def idle(self) -> bool:
        """Whether the factor is 1."""
        return self.factor == 1

    def change(self, place: TensorSlice, square: float) -> Change:
        """Returns what computes the child; see `Mutation.change`."""
        return lambda chunk, parent: parent * self.factor


@dataclass(frozen=True)
class LowRankMutation:
    """Adds ``B A``, B and A normal and of the given rank; in vectors independent normal noise.

    A tensor of more than two dimensions is the matrix ``(first, all others)``.

    Args:
        seed: of the noise.
        rank: at least 1.
        size: rms of the noise by rms of the parent's task vector, in every tensor, exactly; where
            the task vector is zero it stays zero. At least 0.
    """

    seed: int
    rank: int
    size: float
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        make_whole(self, "seed")
        make_whole(self, "rank")
        make_real(self, "size")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.size < 0:
            raise ValueError(f"size must be at least 0, got {self.size}")

    @property
    def idle(self) -> bool:
        """Whether the size is 0."""
        return self.size == 0

    def change(self, place: TensorSlice, square: float) -> Change:
        """Returns what computes the child; see `Mutation.change`."""
        columns = place.columns
        left, right = self._factors(place)
        length = self.size * math.sqrt(square)

        def change(chunk: EntryRange, parent: Tensor) -> Tensor:
            rows = left[chunk.start // columns : chunk.stop // columns].to(parent.device)
            if right is None:
                return parent.add(rows, alpha=length)
            whole = parent.reshape(-1, columns)
            return torch.addmm(whole, rows, right.to(parent.device), alpha=length).reshape(-1)

        return change

    def _factors(self, place: TensorSlice) -> tuple[Tensor, Tensor | None]:
        """Returns B and A, or a vector and None: the noise has length 1 over the tensor."""
        rng = generator("low rank", self.seed, place.tensor)
        if len(place.shape) < 2:
            noise = torch.randn(place.entries, generator=rng)
            return noise.div_(torch.linalg.vector_norm(noise, dtype=torch.float64).float()), None
        left = torch.randn((place.shape[0], self.rank), generator=rng)
        right = torch.randn((self.rank, place.columns), generator=rng)
        a, b = left.double(), right.double()
        length = math.sqrt(float(((a.T @ a) * (b @ b.T)).sum()))  # of B A, without computing it
        return left.div_(length), right


@dataclass(frozen=True)
class SignMutation:
    """Turns the sign of each entry of the task vector with probability `share`."""

    seed: int
    share: float
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        make_whole(self, "seed")
        make_fraction(self, "share")

    @property
    def idle(self) -> bool:
        """Whether the share is 0."""
        return threshold(self.share) == 0

    def change(self, place: TensorSlice, square: float) -> Change:
        """Returns what computes the child; see `Mutation.change`."""

        def change(chunk: EntryRange, parent: Tensor) -> Tensor:
            flipped = mask(self.share, chunk, parent, "sign flip", self.seed, place.tensor)
            signs = flipped.bitwise_and_(torch.iinfo(torch.int32).min)
            return signs.bitwise_xor_(parent.view(torch.int32)).view(torch.float32)

        return change
