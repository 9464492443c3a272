"""Substitution: which block stands at every position of a target, and the model it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from merging.deduplication.blocking import ModelBlocks, l1_distances
from merging.weights import LazyWeights

Pointers = npt.NDArray[np.int64]
"""``(positions,)``: which candidate stands there."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The blocks that may stand in a target: those of the bases in order, then its own.

    Args:
        target: the model to be deduplicated.
        bases: of any architectures, with blocks of the target's size and dtype.
        distances: ``(positions, candidates)``: L1, from every block of the target.
    """

    target: ModelBlocks
    bases: tuple[ModelBlocks, ...]
    distances: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls,
        target: ModelBlocks,
        bases: Sequence[ModelBlocks],
        on_rows: Callable[[int], object] = lambda _: None,
    ) -> Candidates:
        """Returns the candidates with their distances; raises ValueError where blocks differ.

        Args:
            on_rows: called with how many of ``(bases + 1) * len(target)`` rows are done.
        """
        parts = [l1_distances(target, other, on_rows=on_rows) for other in (*bases, target)]
        return cls(target, tuple(bases), torch.cat(parts, 1).numpy())

    @cached_property
    def own(self) -> int:
        """Number of the target's first block among the candidates."""
        return sum(map(len, self.bases))

    def locate(self, candidate: int) -> tuple[ModelBlocks, int]:
        """Returns the model that a candidate belongs to, and its number there."""
        for blocks in (*self.bases, self.target):
            if candidate < len(blocks):
                return blocks, candidate
            candidate -= len(blocks)
        raise IndexError(candidate)


@dataclass(frozen=True, eq=False)
class Substitution:
    """A target with some of its blocks given up.

    Args:
        pointers: the candidate at every position.
        removed: the target's blocks that stand nowhere any more.
    """

    candidates: Candidates
    pointers: Pointers
    removed: frozenset[int] = frozenset()

    @classmethod
    def none(cls, candidates: Candidates) -> Substitution:
        """Returns the target as it is."""
        return cls(candidates, candidates.own + np.arange(len(candidates.target)))

    def substitute(self, group: Iterable[int]) -> Substitution:
        """Returns the target without the blocks of `group` as well.

        Every position that points to a block goes over to the candidate nearest to that block in
        L1, but for the block itself, those removed before, and those of the group; of equally
        near ones to the first.

        Raises:
            ValueError: a block was removed already, or no candidate is left.
        """
        group = list(group)
        if twice := self.removed.intersection(group):
            raise ValueError(f"block {min(twice)} was removed already")
        own, removed = self.candidates.own, self.removed.union(group)
        barred = [own + block for block in removed]
        pointers = self.pointers.copy()
        for block in group:
            distances = self.candidates.distances[block].copy()
            distances[barred] = np.inf
            nearest = int(distances.argmin())
            if not np.isfinite(distances[nearest]):
                raise ValueError("no block is left to stand for the others: add a base")
            pointers[self.pointers == own + block] = nearest
        return replace(self, pointers=pointers, removed=removed)

    @property
    def kept(self) -> tuple[int, ...]:
        """The target's own blocks that stand somewhere: what is stored for it anew."""
        own = self.candidates.own
        return tuple(int(i) - own for i in np.unique(self.pointers[self.pointers >= own]))

    @property
    def lent(self) -> frozenset[int]:
        """The target's own blocks that stand at a position other than theirs."""
        own = self.candidates.own
        moved = self.pointers != own + np.arange(len(self.pointers))
        return frozenset(int(i) - own for i in self.pointers[moved] if i >= own)

    def taken(self, base: int) -> frozenset[int]:
        """Returns the blocks of a base, by its number, that stand somewhere."""
        first = sum(map(len, self.candidates.bases[:base]))
        end = first + len(self.candidates.bases[base])
        return frozenset(int(i) - first for i in self.pointers if first <= i < end)

    @property
    def sources(self) -> tuple[int, ...]:
        """The bases that a block was taken from, by their number."""
        return tuple(i for i in range(len(self.candidates.bases)) if self.taken(i))

    def changed(self, other: Substitution) -> Pointers:
        """Returns the positions at which two substitutions of one target differ."""
        return np.flatnonzero(self.pointers != other.pointers)

    @property
    def ratio(self) -> float:
        """Compression ratio: what is stored anew over the target's numbers; smaller is better.

        ``(new blocks * block_size + untouched) / original``, as the paper counts: padding too.
        """
        target = self.candidates.target
        return (len(self.kept) * target.block_size + target.untouched) / target.elements

    def row(self, position: int) -> Tensor:
        """Returns ``(length,)``: what stands at a position, without padding."""
        blocks, number = self.candidates.locate(int(self.pointers[position]))
        return blocks.row(number)[: self.candidates.target.places[position].length]

    def weights(self) -> Rebuilt:
        """Returns the deduplicated model; every read puts one tensor together."""
        return Rebuilt(self)

    def write(self, state: Mapping[str, Tensor], positions: Iterable[int]) -> None:
        """Writes what stands at some positions into the tensors of a resident model, in place.

        Going back is to write the same positions of the substitution before.

        Args:
            state: the target's tensors by name, of its shapes, contiguous, of any dtype.
        """
        places = self.candidates.target.places
        with torch.no_grad():
            # in the order of where they come from, so that every tensor is read once
            for position in sorted(map(int, positions), key=lambda i: int(self.pointers[i])):
                place = places[position]
                flat = state[place.tensor].view(-1)
                flat[place.start : place.start + place.length].copy_(self.row(position))

    def segments(self, tensor: str) -> list[Segment]:
        """Returns a tensor of the deduplicated model as runs of bytes of its bases and itself.

        What follows each other where it comes from is one segment. A padded row takes what it
        needs of another's; where another's padding stands in it, the segment is of zeros.
        """
        target = self.candidates.target
        if tensor not in target.tensors:
            return [Segment("own", tensor, 0, target.nbytes(tensor))]
        merged: list[Segment] = []
        for part in (part for position in target.of(tensor) for part in self._parts(position)):
            if merged and merged[-1].goes_on(part):
                merged[-1] = replace(merged[-1], length=merged[-1].length + part.length)
            else:
                merged.append(part)
        return merged

    def _parts(self, position: int) -> list[Segment]:
        candidates = self.candidates
        item = torch.empty(0, dtype=candidates.target.dtype).element_size()
        length = candidates.target.places[position].length
        blocks, number = candidates.locate(int(self.pointers[position]))
        place = blocks.places[number]
        origin: int | str = "own"
        if blocks is not candidates.target:
            origin = next(i for i, base in enumerate(candidates.bases) if base is blocks)
        taken = min(length, place.length)
        parts = [Segment(origin, place.tensor, place.start * item, taken * item)]
        if length > taken:
            parts.append(Segment("zeros", "", 0, (length - taken) * item))
        return parts


@dataclass(frozen=True)
class Segment:
    """Bytes of a tensor.

    Args:
        origin: number of the base, ``own`` for the target as it was, ``zeros`` for padding.
        tensor: whose bytes; empty for zeros.
        start: first byte in that tensor.
        length: bytes.
    """

    origin: int | str
    tensor: str
    start: int
    length: int

    def goes_on(self, part: Segment) -> bool:
        """Whether `part` is what follows in the same tensor."""
        return part == Segment(self.origin, self.tensor, self.start + self.length, part.length)


class Rebuilt(LazyWeights):
    """A deduplicated model; tensors that were not cut are the target's own."""

    def __init__(self, substitution: Substitution) -> None:
        self._substitution = substitution
        self._target = substitution.candidates.target
        super().__init__(self._target.weights)

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without computing it."""
        return self._target.shapes[name]

    def _tensor(self, name: str) -> Tensor:
        if name not in self._target.tensors:
            return self._target.weights[name]
        out = torch.empty(self._target.shapes[name], dtype=self._target.dtype)
        self._substitution.write({name: out}, self._target.of(name))
        return out


def cluster_ratio(bases: Sequence[ModelBlocks], targets: Sequence[Substitution]) -> float:
    """Returns the compression ratio of a cluster: its bases count in full.

    ``(bases + new blocks * block_size + untouched) / (all models' numbers)``.
    """
    whole = sum(base.elements for base in bases)
    stored = sum(target.ratio * target.candidates.target.elements for target in targets)
    return (whole + stored) / (whole + sum(t.candidates.target.elements for t in targets))
