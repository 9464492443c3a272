"""One tensor of base and experts, and what is true of it whatever the genome: cached."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.seeding import generator

LARGE = 2**17
"""Entries of a parameter from which on compiled loops are worth their start."""

_PACKED = 2**16
"""Entries of rows that are ranked at a time, which stay in a cache."""

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

    def threshold(self, count: int) -> float:
        """Returns the `count`-th largest magnitude, `count` from 1 to the number of entries."""
        return kth_magnitude((self,), "magnitudes", count, self.delta)

    def ranks(self) -> Tensor:
        """Returns twice the rank of every magnitude in its row, ``(entries,)`` int16 or int32.

        Rank 0 is the smallest; equal ones share the mean of their ranks, which may be a half. A
        row is what one index of the first dimension holds, a tensor of less than two dimensions
        is one row.
        """
        size = _rank_type(self.row_length).itemsize * self.stored.numel()
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


def kth_magnitude(
    rows: ExpertTensors, kind: Hashable, count: int, values: Callable[[], Tensor]
) -> float:
    """Returns the `count`-th largest magnitude of what depends on `rows` alone.

    Args:
        rows: their cache keeps the magnitudes in order where they fit.
        kind: of the values, for the cache.
        count: from 1 to the number of values.
        values: returns all of them, in the dtype of the arithmetic.
    """
    cache, entries = rows[0].cache, rows[0].stored.numel()
    if cache is not None:
        size = rows[0].dtype.itemsize * entries
        rising = cache.get(_key(rows, kind), size, lambda: _rising(values()))
        if rising is not None:
            return float(rising[entries - count])
    return select_magnitude(values(), count)


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


def select_magnitude(values: Tensor, count: int) -> float:
    """Returns the `count`-th largest magnitude; puts nothing in order but what it must."""
    magnitudes, place = values.abs().reshape(-1), values.numel() - count
    if magnitudes.device.type == "cpu":  # 2 to 3 times as fast as kthvalue there
        return float(np.partition(magnitudes.numpy(), place)[place])
    return float(magnitudes.kthvalue(place + 1).values)


def _rising(values: Tensor) -> Tensor:
    """Returns the magnitudes, ``(entries,)``, smallest first."""
    magnitudes = values.abs().reshape(-1)
    if magnitudes.device.type != "cpu":
        return magnitudes.sort().values
    magnitudes.numpy().sort()  # several times as fast as torch's, which keeps positions too
    return magnitudes


def rank_in_rows(delta: Tensor) -> Tensor:
    """Returns twice every magnitude's rank in its row, flat; see `ExpertTensor.ranks`."""
    rows = delta.reshape(delta.shape[0] if delta.dim() > 1 else 1, -1).abs()
    length = rows.shape[1]
    kind = _rank_type(length)
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and length < 2**31:
        step = max(1, _PACKED // max(1, length))
        parts = [rows[at : at + step].numpy() for at in range(0, len(rows), step)]
        ranks = torch.cat([torch.from_numpy(_packed_ranks(part)).to(kind) for part in parts])
    else:
        rising = rows.sort(dim=1).values
        ranks = torch.searchsorted(rising, rows, out_int32=True)  # how many are smaller
        ranks.add_(torch.searchsorted(rising, rows, out_int32=True, right=True)).sub_(1)
    return ranks.to(kind).view(-1)


def _packed_ranks(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the same, ``(rows, entries)``: magnitude and position are sorted as one number."""
    index = np.arange(rows.shape[1])
    keys = rows.view(np.uint32).astype(np.uint64) << np.uint64(32) | index.astype(np.uint64)
    keys.sort(axis=1)
    magnitudes, places = keys >> np.uint64(32), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    grows = np.diff(magnitudes, axis=1, prepend=np.uint64(2**32)) != 0
    first = np.maximum.accumulate(np.where(grows, index, 0), axis=1)
    ends = np.roll(grows, -1, axis=1)
    last = np.minimum.accumulate(np.where(ends, index, rows.size)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty_like(places)
    np.put_along_axis(ranks, places, first + last, axis=1)  # equal ones: from first to last
    return ranks


def _rank_type(length: int) -> torch.dtype:
    """Returns what holds twice the ranks of a row."""
    return torch.int16 if length <= 2**14 else torch.int32
