"""Where the entries of a task vector lie: in the vector, in the model's depth, and in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from merging.checkpoints.experts import ExpertPool
from merging.grouping import layer_of

CHUNK_ENTRIES = 2**16
"""Entries of a chunk, about: small enough that a chunk of every ancestor fits a CPU's cache."""


@dataclass(frozen=True)
class EntryRange:
    """Entries ``start`` to ``stop`` of a flattened tensor: whole rows, or part of a vector.

    Args:
        number: counted from 0 in the tensor.
        start: first entry.
        stop: one past the last entry.
    """

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class TensorSlice:
    """One tensor's place in the flattened task vector and in the depth of the model.

    Args:
        tensor: its name.
        shape: of the tensor.
        offset: entries of the vector before it.
        total: entries of the whole vector.
        layer: the layer that it belongs to, counted from 0 over all stacks.
        layers: of the model, at least 1.
    """

    tensor: str
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

    def chunks(self) -> Iterator[EntryRange]:
        """Yields chunks of `CHUNK_ENTRIES`, rounded down to whole rows, at least one row.

        The layout belongs to what seeds mean: random operators draw chunk by chunk.
        """
        columns, entries = self.columns, self.entries
        step = max(1, CHUNK_ENTRIES // max(1, columns)) * columns
        for number, start in enumerate(range(0, entries, max(1, step))):
            yield EntryRange(number, start, min(start + step, entries))


def places(pool: ExpertPool) -> dict[str, TensorSlice]:
    """Returns the place of every tensor that the pool merges, in the order of `pool.names`.

    Layers are counted in the order in which their tensors come, through all stacks (encoder,
    decoder). A tensor outside the layers goes with the layer before it, the embeddings before all
    layers with the first; a model without layers is one layer.
    """
    shapes = {name: tuple(pool.base.shape(name)) for name in pool.names}
    total = sum(map(math.prod, shapes.values()))
    layers: dict[tuple[str, int], int] = {}
    found, offset, layer = {}, 0, 0
    for name, shape in shapes.items():
        if (key := layer_of(name)) is not None:
            layer = layers.setdefault(key, len(layers))
        found[name] = offset, layer
        offset += math.prod(shape)
    depth = max(1, len(layers))
    return {
        name: TensorSlice(name, shapes[name], start, total, layer, depth)
        for name, (start, layer) in found.items()
    }
