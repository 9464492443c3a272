"""Where the entries of a task vector lie: in the vector, in the model's depth, and in blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from merging.checkpoints.experts import ExpertPool
from merging.grouping import layer_of

BLOCK_ENTRIES = 2**16
"""Entries of a block, about: small enough that a block of every ancestor fits a CPU's cache."""


@dataclass(frozen=True)
class TensorSlice:
    """One tensor as a slice of the flattened task vector, and its layer.

    Args:
        offset: entries of the vector before it.
        total: entries of the whole vector.
        layer: the layer that it belongs to, counted from 0 over all stacks.
        layers: of the model, at least 1.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    total: int
    layer: int
    layers: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Entries of a row, that is of one index of the first dimension; 1 in a vector."""
        return math.prod(self.shape[1:])

    def blocks(self) -> Iterator[EntryRange]:
        """Yields blocks of `BLOCK_ENTRIES`, rounded down to whole rows, at least one row.

        The layout belongs to what seeds mean: random operators draw block by block.
        """
        columns, entries = self.columns, self.entries
        step = max(1, BLOCK_ENTRIES // max(1, columns)) * columns
        for number, start in enumerate(range(0, entries, max(1, step))):
            yield EntryRange(self, number, start, min(start + step, entries))


@dataclass(frozen=True)
class EntryRange:
    """A block: entries ``start`` to ``stop`` of a flattened tensor, full rows or part of a vector.

    Args:
        number: of the block, counted from 0 in the tensor.
    """

    tensor: TensorSlice
    number: int
    start: int
    stop: int


def tensor_slices(pool: ExpertPool) -> dict[str, TensorSlice]:
    """Returns the slice of every tensor that the pool merges, in the order of `pool.names`.

    Layers are counted in the order in which their tensors come, through all stacks (encoder,
    decoder). A tensor outside the layers goes with the layer before it, the embeddings before all
    layers with the first; a model without layers is one layer.
    """
    shapes = {name: tuple(pool.base.shape(name)) for name in pool.names}
    total = sum(map(math.prod, shapes.values()))
    numbers: dict[tuple[str, int], int] = {}
    starts, offset, layer = {}, 0, 0
    for name, shape in shapes.items():
        if (key := layer_of(name)) is not None:
            layer = numbers.setdefault(key, len(numbers))
        starts[name] = offset, layer
        offset += math.prod(shape)
    layers = max(1, len(numbers))
    return {
        name: TensorSlice(name, shapes[name], offset, total, layer, layers)
        for name, (offset, layer) in starts.items()
    }
