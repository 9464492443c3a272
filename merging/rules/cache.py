"""One tensor of base and experts, and what is true of it whatever the genome: computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from merging.seeding import generator

LARGE = 2**17
"""Entries of a parameter from which on compiled loops are worth their start."""

T = TypeVar("T")


class TensorCache:
    """Keeps what was computed of a pool's tensors, up to a number of bytes.

    First come, first kept: a search reads all tensors in turn, and whatever replaced the oldest
    would then replace everything just before it is read again.

    Args:
        limit_bytes: most bytes of tensors kept; 0 keeps single numbers only.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 0:
            raise ValueError(f"facts_bytes is {limit_bytes}, expected at least 0")
        self._limit, self._held = limit_bytes, 0
        self._known: dict[Hashable, Any] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors kept."""
        return self._held

    def get(self, key: Hashable, size: int, compute: Callable[[], T]) -> T | None:
        """Returns what `compute` gave the first time; None where `size` bytes do not fit."""
        if key not in self._known:
            if self._held + size > self._limit and size:
                return None
            self._held += size
            self._known[key] = compute()
        found: T = self._known[key]
        return found


@dataclass(frozen=True)
class Threshold:
    """Where a selection by magnitude ends.

    Kept is what is larger than `threshold`, and what equals it at a position up to `last`.
    """

    threshold: float
    last: int


@dataclass(frozen=True, eq=False)
class ExpertTensor:
    """One expert's tensor.

    Args:
        tensor: name of the parameter.
        expert: identity of the expert.
        stored: ``(*shape)``: the expert's own, in its own dtype, or expert minus base.
        whole: whether `stored` is the expert's own.
        base: ``(*shape)``, the base's, in its own dtype.
        dtype: of the arithmetic.
        facts: keeps what is computed here; None: nothing is kept.
    """

    tensor: str
    expert: str
    stored: Tensor
    whole: bool
    base: Tensor
    dtype: torch.dtype
    facts: TensorCache | None = None

    def delta(self) -> Tensor:
        """Returns expert minus base, ``(*shape)`` in `dtype`; not to be changed."""
        if not self.whole:
            return self.stored
        return self.stored.to(self.dtype, copy=True).sub_(self.base.to(self.dtype))

    def own(self) -> Tensor:
        """Returns the expert's own tensor, ``(*shape)`` in `dtype`; not to be changed."""
        if self.whole:
            return self.stored.to(self.dtype)
        return self.stored + self.base

    @property
    def moved(self) -> bool:
        """Whether any entry differs from the base's."""
        return bool(self._fact("moved", 0, self._moved))

    def cut(self, count: int) -> Threshold:
        """Returns where the `count` largest magnitudes end; of equal ones the earlier are kept.

        Args:
            count: from 1 to one less than the number of entries.
        """
        return cut_of((self,), "order", count, self.delta, self._delta_at)

    def _delta_at(self, position: int) -> float:
        found = self.stored.reshape(-1)[position].item()
        if not self.whole:
            return found
        base = self.base.reshape(-1)[position].item()
        if self.dtype == torch.float64:
            return found - base
        return float(np.float32(found) - np.float32(base))

    def ranks(self) -> Tensor:
        """Returns the rank of every magnitude in its row, ``(entries,)`` of int16 or int32.

        0 is the smallest, equal ones rank in their order; a row is what one index of the first
        dimension holds, a tensor of less than two dimensions is one row.
        """
        wide = 2 if self.row_length <= 2**15 else 4
        size = wide * self.stored.numel()
        return self._fact("ranks", size, lambda: rank_in_rows(self.delta()))

    @property
    def row_length(self) -> int:
        """Entries that `ranks` compares with each other."""
        shape = self.stored.shape
        return self.stored.numel() // shape[0] if len(shape) > 1 else self.stored.numel()

    def draws(self, seed: int) -> Tensor:
        """Returns the expert's noise in [0, 1), ``(entries,)`` float32 in every precision."""

        def draw() -> Tensor:
            noise = generator(seed, self.expert, self.tensor)
            size = self.stored.numel()
            return torch.rand(size, generator=noise, dtype=torch.float32).to(self.base.device)

        return self._fact(("draws", seed), 4 * self.stored.numel(), draw)

    def _moved(self) -> bool:
        if not self.whole:
            return bool(self.stored.any())
        if self.stored.dtype == self.base.dtype:
            return not torch.equal(self.stored, self.base)
        return bool(self.delta().any())

    def _fact(self, kind: Hashable, size: int, compute: Callable[[], T]) -> T:
        return joint_fact((self,), kind, size, compute)


ExpertTensors: TypeAlias = tuple[ExpertTensor, ...]


def joint_fact(rows: ExpertTensors, kind: Hashable, size: int, compute: Callable[[], T]) -> T:
    """Returns what `compute` gives, kept where the rows keep facts and `size` bytes fit."""
    facts = rows[0].facts
    key = (rows[0].tensor, tuple(row.expert for row in rows), kind)
    found = None if facts is None else facts.get(key, size, compute)
    return compute() if found is None else found


def cut_of(
    rows: ExpertTensors,
    kind: Hashable,
    count: int,
    values: Callable[[], Tensor],
    read: Callable[[int], float],
) -> Threshold:
    """Returns where the `count` largest magnitudes of what depends on `rows` alone end.

    Args:
        rows: keep the order of the magnitudes where there is room.
        kind: of the values, for keeping.
        count: from 1 to one less than the number of values.
        values: returns all of them.
        read: returns one of them, by its position.
    """
    facts, size = rows[0].facts, rows[0].stored.numel()
    if facts is not None and rows[0].dtype == torch.float32 and size < 2**31:
        key = (rows[0].tensor, tuple(row.expert for row in rows), kind)
        order = facts.get(key, 4 * size, lambda: by_magnitude(values()))
        if order is not None:
            last = int(order[count - 1])
            return Threshold(abs(read(last)), last)
    return selected(values().abs().reshape(-1), count)


@dataclass(frozen=True, eq=False)
class ParameterStack:
    """One parameter of the base and of every expert.

    Args:
        name: of the parameter.
        base: ``(*shape)``, in its own dtype.
        rows: one for every expert.
        dtype: of the arithmetic.
        large: whether this or another parameter of the model has at least `LARGE` entries, so
            that compiled loops are worth their start.
    """

    name: str
    base: Tensor
    rows: ExpertTensors
    dtype: torch.dtype
    large: bool = False


def selected(magnitudes: Tensor, count: int) -> Threshold:
    """Returns where the `count` largest of the flat `magnitudes` end."""
    size = magnitudes.numel()
    if magnitudes.device.type == "cpu":  # 2 to 3 times as fast as kthvalue there
        threshold = float(np.partition(magnitudes.numpy(), size - count)[size - count])
    else:
        threshold = float(magnitudes.kthvalue(size - count + 1).values)
    equal = (magnitudes == threshold).nonzero().flatten()
    larger = int((magnitudes > threshold).sum())
    return Threshold(threshold, int(equal[count - larger - 1]))


def by_magnitude(values: Tensor) -> Tensor:
    """Returns the positions of less than 2^31 float32 numbers, ``(entries,)`` int32.

    Largest magnitude first, and earlier first among equals. On a CPU two counting sorts, the
    second by the leading 16 of the 31 bits (exponent and seven bits of the fraction); of
    bfloat16 numbers there are no others.
    """
    flat = values.abs().reshape(-1)
    if flat.device.type != "cpu":
        return flat.sort(descending=True, stable=True).indices.to(torch.int32)
    keys = 0x7FFFFFFF - flat.numpy().view(np.int32)  # larger magnitudes first
    leading = (keys >> 16).astype(np.uint16)
    trailing = keys.astype(np.uint16)
    if trailing.min(initial=0xFFFF) == 0xFFFF:
        return torch.from_numpy(leading.argsort(kind="stable").astype(np.int32))
    order = trailing.argsort(kind="stable").astype(np.int32)
    return torch.from_numpy(order[leading[order].argsort(kind="stable")])


def rank_in_rows(delta: Tensor) -> Tensor:
    """Returns every magnitude's rank in its row, flat; see `ExpertTensor.ranks`."""
    rows = delta.reshape(delta.shape[0] if delta.dim() > 1 else 1, -1).abs()
    length = rows.shape[1]
    kind = torch.int16 if length <= 2**15 else torch.int32
    if not _packs(rows, length):
        order = rows.argsort(dim=1, stable=True)
    else:
        keys = rows.contiguous().numpy().view(np.uint32).astype(np.uint64)
        np.left_shift(keys, 32, out=keys)
        np.bitwise_or(keys, np.arange(length, dtype=np.uint32), out=keys)
        keys.sort(axis=1)
        order = torch.from_numpy((keys & 0xFFFFFFFF).astype(np.int64))
    ranks = torch.arange(length, dtype=kind, device=rows.device).expand_as(order)
    found = torch.empty(order.shape, dtype=kind, device=rows.device)
    return found.scatter_(1, order, ranks).view(-1)


def _packs(values: Tensor, size: int) -> bool:
    """Whether magnitude and position fit into one number of numpy's."""
    return values.device.type == "cpu" and values.dtype == torch.float32 and size < 2**31
