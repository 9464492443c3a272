"""Mutations of task vectors: a child of one parent, repeated by its numbers and seed.

All act on individual minus base, one tensor at a time and within it block by block; crossovers are
in `merging.lineages.crossover`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from merging.lineages.chance import level, mask, set_float, set_fraction, set_int
from merging.lineages.slices import EntryRange, TensorSlice
from merging.rules.threads import one_thread
from merging.seeding import generator

Change: TypeAlias = Callable[[EntryRange, Tensor], Tensor]
"""A block and the parent's entries in it, ``(entries,)`` float32, to the child's."""


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

    def change(self, tensor: TensorSlice, square: float) -> Change:
        """Returns the function from the parent's blocks to the child's; it changes no argument.

        Args:
            square: squared length of the parent's vector in it.
        """
        ...


@dataclass(frozen=True)
class ScaleMutation:
    """``factor`` times the task vector, any real factor."""

    factor: float
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        set_float(self, "factor")

    @property
    def idle(self) -> bool:
        """Whether the factor is 1."""
        return self.factor == 1

    def change(self, tensor: TensorSlice, square: float) -> Change:
        """Returns ``factor * parent`` as a function."""
        return lambda block, parent: parent * self.factor


@dataclass(frozen=True)
class LowRankMutation:
    """Adds ``B A``, B and A normal and of the given rank; in vectors independent normal noise.

    `size` is the rms of the noise by that of the parent's task vector, in every tensor, exactly;
    where the task vector is zero it stays zero. A tensor of more than two dimensions is the matrix
    ``(first, all others)``.
    """

    seed: int
    rank: int
    size: float
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_int(self, "seed")
        set_int(self, "rank")
        set_float(self, "size")
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.size < 0:
            raise ValueError(f"size must be at least 0, got {self.size}")

    @property
    def idle(self) -> bool:
        """Whether the size is 0."""
        return self.size == 0

    def change(self, tensor: TensorSlice, square: float) -> Change:
        """Returns ``parent + size |parent| B A / |B A|`` as a function."""
        columns = tensor.columns
        left, right = self._factors(tensor)
        length = self.size * math.sqrt(square)

        @one_thread()
        def add_noise(block: EntryRange, parent: Tensor) -> Tensor:
            rows = left[block.start // columns : block.stop // columns].to(parent.device)
            if right is None:
                return parent.add(rows, alpha=length)
            matrix = parent.reshape(-1, columns)
            return torch.addmm(matrix, rows, right.to(parent.device), alpha=length).reshape(-1)

        return add_noise

    @one_thread()
    def _factors(self, tensor: TensorSlice) -> tuple[Tensor, Tensor | None]:
        """Returns B and A, or a vector and None: the noise has length 1 over the tensor."""
        rng = generator("low rank", self.seed, tensor.name)
        if len(tensor.shape) < 2:
            noise = torch.randn(tensor.entries, generator=rng)
            return noise.div_(torch.linalg.vector_norm(noise, dtype=torch.float64).float()), None
        left = torch.randn((tensor.shape[0], self.rank), generator=rng)
        right = torch.randn((self.rank, tensor.columns), generator=rng)
        b, a = left.double(), right.double()
        length = math.sqrt(float(((b.T @ b) * (a @ a.T)).sum()))  # |B A|^2 = <B^T B, A A^T>
        return left.div_(length), right


@dataclass(frozen=True)
class SignMutation:
    """Turns the sign of each entry of the task vector with probability `share`."""

    seed: int
    share: float
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        set_int(self, "seed")
        set_fraction(self, "share")

    @property
    def idle(self) -> bool:
        """Whether the share is 0."""
        return level(self.share) == 0

    def change(self, tensor: TensorSlice, square: float) -> Change:
        """Returns the function that gives ``-parent`` where the mask is set, else ``parent``."""

        def flip(block: EntryRange, parent: Tensor) -> Tensor:
            chosen = mask(self.share, block, "sign flip", self.seed, parent)
            signs = chosen.bitwise_and_(torch.iinfo(torch.int32).min)
            return signs.bitwise_xor_(parent.view(torch.int32)).view(torch.float32)

        return flip
