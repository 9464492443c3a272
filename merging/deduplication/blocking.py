"""Blocks: every large tensor of a model flattened and cut into rows of equal size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from merging.weights import Weights

_CHUNK_BYTES = 64 * 2**20
_COLUMNS = 16384


@dataclass(frozen=True)
class Place:
    """Where a block lies: elements ``start`` to ``start + length`` of a flattened tensor."""

    tensor: str
    start: int
    length: int


class ModelBlocks:
    """The blocks of one model, in the order of its tensors.

    Cut are the tensors with two or more dimensions and at least one block of elements, of the
    dtype that most elements have; the last row of each is padded with zeros. All other tensors
    are left as they are (`untouched`).

    Args:
        weights: read tensor by tensor, whenever a row is read.
        block_size: elements of a row.

    Raises:
        ValueError: a block without elements, or a model without blocks.

    Source: arXiv:2503.02862; sizes used there: 768^2, 1024^2 and 512^2, one layer's matrix.
    """

    def __init__(self, weights: Weights, block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self.weights, self.block_size = weights, block_size
        self.shapes = {name: _shape(weights, name) for name in weights}
        dtypes = self._dtypes = {name: _dtype(weights, name) for name in weights}
        elements: Counter[torch.dtype] = Counter()
        for name, shape in self.shapes.items():
            elements[dtypes[name]] += shape.numel() if dtypes[name].is_floating_point else 0
        self.dtype = max(elements, key=lambda dtype: elements[dtype]) if elements else None
        self.tensors = tuple(
            name
            for name, shape in self.shapes.items()
            if dtypes[name] == self.dtype and len(shape) >= 2 and shape.numel() >= block_size
        )
        if not self.tensors:
            largest = max((shape.numel() for shape in self.shapes.values()), default=0)
            raise ValueError(
                f"no tensor has two dimensions and {block_size} elements (the largest tensor has "
                f"{largest}): choose a smaller block_size"
            )
        self._read: tuple[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every block's place."""
        size = self.block_size
        return tuple(
            Place(name, start, min(size, self.shapes[name].numel() - start))
            for name in self.tensors
            for start in range(0, self.shapes[name].numel(), size)
        )

    @property
    def elements(self) -> int:
        """Numbers in the whole model."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def untouched(self) -> int:
        """Numbers in the tensors that are not cut."""
        return self.elements - sum(self.shapes[name].numel() for name in self.tensors)

    def of(self, tensor: str) -> range:
        """Returns the numbers of a cut tensor's blocks."""
        first = self._first[tensor]
        return range(first, first + math.ceil(self.shapes[tensor].numel() / self.block_size))

    @cached_property
    def _first(self) -> dict[str, int]:
        return {p.tensor: block for block, p in enumerate(self.places) if p.start == 0}

    def nbytes(self, tensor: str) -> int:
        """Returns the size of any tensor of the model."""
        return self.shapes[tensor].numel() * self._dtypes[tensor].itemsize

    def row(self, block: int) -> Tensor:
        """Returns ``(block_size,)`` of the model's dtype: a block, padded with zeros."""
        place = self.places[block]
        flat = self._flat(place.tensor)[place.start : place.start + place.length]
        return torch.nn.functional.pad(flat, (0, self.block_size - place.length))

    def rows(self, blocks: range) -> Tensor:
        """Returns ``(blocks, block_size)`` of the model's dtype."""
        return torch.stack([self.row(block) for block in blocks])

    def _flat(self, name: str) -> Tensor:
        if self._read is None or self._read[0] != name:
            self._read = name, self.weights[name].reshape(-1)
        return self._read[1]


def l1_distances(
    blocks: ModelBlocks,
    others: ModelBlocks,
    *,
    chunk_bytes: int = _CHUNK_BYTES,
    on_rows: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Returns ``(blocks, others)`` float64, CPU: the L1 distance of every pair of blocks.

    Sums run in float32 over some thousand elements, and in float64 over these sums.

    Args:
        chunk_bytes: memory for rows in float32; half for each side, at least one row each.
        on_rows: called with the number of rows of `blocks` that are done.

    Raises:
        ValueError: the models' blocks differ in size or dtype.
    """
    if (blocks.block_size, blocks.dtype) != (others.block_size, others.dtype):
        raise ValueError(
            f"blocks of {blocks.block_size} {blocks.dtype} cannot stand for blocks of "
            f"{others.block_size} {others.dtype}: save both models in one dtype"
        )
    rows = max(1, chunk_bytes // (2 * 4 * blocks.block_size))
    distances = torch.zeros(len(blocks), len(others), dtype=torch.float64)
    for own in _chunks(len(blocks), rows):
        left = blocks.rows(own).float()
        for other in _chunks(len(others), rows):
            if blocks is others and other.start < own.start:  # the matrix is symmetric
                continue
            found = _pairs(left, others.rows(other).float())
            distances[own.start : own.stop, other.start : other.stop] = found
            if blocks is others:
                distances[other.start : other.stop, own.start : own.stop] = found.T
        on_rows(len(own))
    return distances


def _pairs(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``sum_k |left_ik - right_jk|``."""
    parts = zip(torch.split(left, _COLUMNS, 1), torch.split(right, _COLUMNS, 1), strict=True)
    return torch.stack([torch.cdist(a, b, p=1).double() for a, b in parts]).sum(0).cpu()


def _chunks(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _shape(weights: Weights, name: str) -> torch.Size:
    known = getattr(weights, "shape", None)
    return torch.Size(known(name)) if known is not None else weights[name].shape


def _dtype(weights: Weights, name: str) -> torch.dtype:
    known = getattr(weights, "dtype", None)
    dtype: torch.dtype = known(name) if known is not None else weights[name].dtype
    return dtype
