"""Where two models of one zoo have other bytes, and these bytes; blocks read stay at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merging.zoo import index
from merging.zoo.blocks import Blocks, Bytes
from merging.zoo.errors import ZooError
from merging.zoo.store import Zoo

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The bytes of some tensors of a model, one after the other, as runs of blocks' bytes.

    Args:
        starts: ``(tensors + 1,)``: where each tensor begins, and where the last one ends.
        ends: ``(runs,)``: where each run ends.
        blocks: ``(runs,)``: whose bytes.
        shifts: ``(runs,)``: a byte's place in the block, minus its place here.
    """

    starts: Integers
    ends: Integers
    blocks: Integers
    shifts: Integers

    @classmethod
    def of(cls, zoo: Zoo, model: str, tensors: Iterable[str]) -> Arrangement:
        """Returns the arrangement of a stored model; reads the index only."""
        weights, tensors = zoo.weights(model), tuple(tensors)
        for tensor in tensors:
            if tensor not in weights:
                raise ZooError(f"{model} stores no tensor {tensor}; serve it in another set")
        pieces = [weights.pieces(tensor) for tensor in tensors]
        lengths = [int(part["length"].sum(dtype=np.int64)) for part in pieces]
        runs = np.concatenate(pieces)
        ends = np.cumsum(runs["length"], dtype=np.int64)
        shifts = runs["start"] - (ends - runs["length"])
        return cls(np.cumsum([0, *lengths]), ends, runs["block"], shifts)

    def changed(self, other: Arrangement | None) -> Iterator[tuple[int, int, int, int, int]]:
        """Yields what has to be written where `other` stands; None: all.

        Yields:
            Number of the tensor, first byte in it, block, first byte in that, and how many bytes.
        """
        ends = self.ends if other is None else np.union1d(self.ends, other.ends)
        begins = np.append(0, ends[:-1])
        own = np.searchsorted(self.ends, begins, side="right")
        differs = np.ones(len(ends), bool)
        if other is not None:
            its = np.searchsorted(other.ends, begins, side="right")
            differs = self.blocks[own] != other.blocks[its]
            differs |= self.shifts[own] != other.shifts[its]
        begins, ends, own = begins[differs], ends[differs], own[differs]
        tensors = np.searchsorted(self.starts, begins, side="right") - 1
        columns = (
            tensors,
            begins - self.starts[tensors],
            self.blocks[own],
            begins + self.shifts[own],
            ends - begins,
        )
        yield from zip(*(column.tolist() for column in columns), strict=True)


class Differences:
    """Says what has to be written to make one model of a zoo of another in memory.

    Args:
        zoo: where the models are stored.
        models: their names; all of the same tensors.
        tensors: of these models, in the order of their numbers in what is yielded.
        cache_bytes: of raw blocks that are held: the least recently used are let go.

    Raises:
        ZooError: a model whose tensors are others, or have other lengths.
    """

    def __init__(
        self, zoo: Zoo, models: Iterable[str], tensors: Iterable[str], cache_bytes: int
    ) -> None:
        names = tuple(tensors)
        self._arrangements = {model: Arrangement.of(zoo, model, names) for model in models}
        first = next(iter(self._arrangements.values()))
        for model, arrangement in self._arrangements.items():
            if not np.array_equal(arrangement.starts, first.starts):
                raise ZooError(f"{model} has tensors of other shapes; serve it in another set")
        blocks = np.unique(np.concatenate([each.blocks for each in self._arrangements.values()]))
        with index.reading(zoo.directory) as connection:
            self._rows = index.rows(connection, blocks.tolist())
        self.blocks = Blocks(zoo.directory, cache_bytes)

    def __contains__(self, model: str) -> bool:
        return model in self._arrangements

    def between(self, now: str | None, wanted: str) -> Iterator[tuple[int, int, Bytes]]:
        """Yields number of a tensor, first byte in it, and the bytes to be written there.

        Args:
            now: the model that memory holds; None: nothing that is known.

        Raises:
            ZooError: a block cannot be read; what was not yielded yet has not changed.
        """
        held = None if now is None else self._arrangements[now]
        for tensor, at, block, start, length in self._arrangements[wanted].changed(held):
            yield tensor, at, self.blocks.raw(block, self._rows)[start : start + length]
