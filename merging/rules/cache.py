"""One tensor of base and experts, and what is true of it whatever the genome: cached."""

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
            raise ValueError(f"cache_bytes is {limit_bytes}, expected at least 0")
        self._limit, self._held = limit_bytes, 0
        self._values: dict[Hashable, Any] = {}

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors kept."""
        return self._held

    def get(self, key: Hashable, size: int, compute: Callable[[], T]) -> T | None:
        """Returns what `compute` gave the first time; None where `size` bytes do not fit."""
        if key not in self._values:
            if self._held + size > self._limit and size:
                return None
            self._held += size
            self._values[key] = compute()
        value: T = self._values[key]
        return value


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
        is_full_checkpoint: whether `stored` is the expert's own.
        base: ``(*shape)``, the base's, in its own dtype.
        dtype: of the arithmetic.
        cache: keeps what is computed here; None: nothing is kept.
    """

    tensor: str
    expert: str
    stored: Tensor
    is_full_checkpoint: bool
    base: Tensor
    dtype: torch.dtype
    cache: TensorCache | None = None

    def delta(self) -> Tensor:
        """Returns expert minus base, ``(*shape)`` in `dtype`; not to be changed."""
        if not self.is_full_checkpoint:
            return self.stored
        return self.stored.to(self.dtype, copy=True).sub_(self.base.to(self.dtype))

    def own(self) -> Tensor:
        """Returns the expert's own tensor, ``(*shape)`` in `dtype`; not to be changed."""
        if self.is_full_checkpoint:
            return self.stored.to(self.dtype)
        return self.stored + self.base

    @property
    def moved(self) -> bool:
        """Whether any entry differs from the base's."""
        return bool(cached((self,), "moved", 0, self._moved))

    def threshold(self, count: int) -> Threshold:
        """Returns where the `count` largest magnitudes end; of equal ones the earlier are kept.

        Args:
            count: from 1 to one less than the number of entries.
        """
        return threshold_of((self,), "order", count, self.delta, self._delta_at)

    def _delta_at(self, position: int) -> float:
        stored = self.stored.reshape(-1)[position].item()
        if not self.is_full_checkpoint:
            return stored
        base = self.base.reshape(-1)[position].item()
        if self.dtype == torch.float64:
            return stored - base
        return float(np.float32(stored) - np.float32(base))

    def ranks(self) -> Tensor:
        """Returns the rank of every magnitude in its row, ``(entries,)`` of int16 or int32.

        0 is the smallest, equal ones rank in their order; a row is what one index of the first
        dimension holds, a tensor of less than two dimensions is one row.
        """
        wide = 2 if self.row_length <= 2**15 else 4
        size = wide * self.stored.numel()
        return cached((self,), "ranks", size, lambda: rank_in_rows(self.delta()))

    @property
    def row_length(self) -> int:
        """How many entries `ranks` compares with each other."""
        shape = self.stored.shape
        return self.stored.numel() // shape[0] if len(shape) > 1 else self.stored.numel()

    def draws(self, seed: int) -> Tensor:
        """Returns the expert's noise in [0, 1), ``(entries,)`` float32 in every precision."""

        def draw() -> Tensor:
            noise = generator(seed, self.expert, self.tensor)
            size = self.stored.numel()
            return torch.rand(size, generator=noise, dtype=torch.float32).to(self.base.device)

        return cached((self,), ("draws", seed), 4 * self.stored.numel(), draw)

    def _moved(self) -> bool:
        if not self.is_full_checkpoint:
            return bool(self.stored.any())
        if self.stored.dtype == self.base.dtype:
            return not torch.equal(self.stored, self.base)
        return bool(self.delta().any())


ExpertTensors: TypeAlias = tuple[ExpertTensor, ...]


def cached(rows: ExpertTensors, kind: Hashable, size: int, compute: Callable[[], T]) -> T:
    """Returns what `compute` gives, kept where the experts have a cache and `size` bytes fit."""
    cache = rows[0].cache
    value = None if cache is None else cache.get(_key(rows, kind), size, compute)
    return compute() if value is None else value


def _key(rows: ExpertTensors, kind: Hashable) -> Hashable:
    return rows[0].tensor, tuple(row.expert for row in rows), kind


def threshold_of(
    rows: ExpertTensors,
    kind: Hashable,
    count: int,
    values: Callable[[], Tensor],
    read: Callable[[int], float],
) -> Threshold:
    """Returns where the `count` largest magnitudes of what depends on `rows` alone end.

    Args:
        rows: their cache keeps the order of the magnitudes where it fits.
        kind: of the values, for the cache.
        count: from 1 to one less than the number of values.
        values: returns all of them.
        read: returns one of them, by its position.
    """
    cache, size = rows[0].cache, rows[0].stored.numel()
    if cache is not None and rows[0].dtype == torch.float32 and size < 2**31:
        order = cache.get(_key(rows, kind), 4 * size, lambda: by_magnitude(values()))
        if order is not None:
            last = int(order[count - 1])
            return Threshold(abs(read(last)), last)
    return select_threshold(values().abs().reshape(-1), count)


@dataclass(frozen=True, eq=False)
class ParameterStack:
    """One parameter of the base and of every expert.

    Args:
        base: ``(*shape)``, in its own dtype.
        dtype: of the arithmetic.
        large: whether this or another parameter of the model has at least `LARGE` entries, so
            that compiled loops are worth their start.
    """

    name: str
    base: Tensor
    rows: ExpertTensors
    dtype: torch.dtype
    large: bool = False


def select_threshold(magnitudes: Tensor, count: int) -> Threshold:
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
    out = torch.empty(order.shape, dtype=kind, device=rows.device)
    return out.scatter_(1, order, ranks).view(-1)


def _packs(values: Tensor, size: int) -> bool:
    """Whether magnitude and position fit into one number of numpy's."""
    return values.device.type == "cpu" and values.dtype == torch.float32 and size < 2**31
