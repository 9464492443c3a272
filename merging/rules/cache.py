"""One tensor of base and experts, and what is true of it whatever the genome: cached."""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from merging.rules.magnitudes import (
    LEADING,
    leading_counts,
    magnitudes_in_order,
    rank_in_rows,
    rank_type,
    select_magnitude,
    with_leading,
)
from merging.seeding import generator

LARGE = 2**17
"""Entries of a parameter from which on compiled loops are worth their start."""

LARGE_ONCE = 2**20
"""The same where there is one merge, and no search of many."""

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

    def reading(self) -> "TensorCache":
        """Returns what finds the same values and keeps no more tensors."""
        view = TensorCache(0)
        view._values = self._values
        return view

    def clear(self) -> None:
        """Lets go of all that is kept."""
        self._values.clear()
        self._held = 0

    def get(self, key: Hashable, size: int, compute: Callable[[], T]) -> T | None:
        """Returns what `compute` gave the first time; None where `size` bytes do not fit."""
        if key not in self._values:
            if self._held + size > self._limit and size:
                return None
            self._held += size
            self._values[key] = compute()
        value: T = self._values[key]
        return value


class ModelMagnitudes:
    """The magnitudes of one expert's whole task vector: cuts that go through all tensors at once.

    Nothing is put in order but the magnitudes whose leading bits are those of the cut: two passes
    over the task vector, of which what the first found is kept for all cuts.

    Args:
        expert: its identity.
        deltas: returns all tensors of the task vector, ``(*shape)`` float32 each, one by one.
        cache: keeps what the second pass found.
    """

    def __init__(
        self, expert: str, deltas: Callable[[], Iterator[Tensor]], cache: TensorCache | None
    ) -> None:
        self._expert, self._deltas, self._cache = expert, deltas, cache
        self._cuts: dict[int, float] = {}

    @cached_property
    def _at_least(self) -> Tensor:
        """How many magnitudes have these leading bits or larger ones, ``(LEADING + 1,)``."""
        counts = torch.zeros(LEADING + 1, dtype=torch.int64)
        for delta in self._deltas():
            counts[:LEADING] += leading_counts(delta).cpu()
        return counts.flip(0).cumsum(0).flip(0)

    @property
    def entries(self) -> int:
        """How many entries the task vector has."""
        return int(self._at_least[0])

    def threshold(self, count: int) -> float:
        """Returns the `count`-th largest magnitude, `count` from 1 to the number of entries."""
        if count not in self._cuts:
            self._cuts[count] = self._find(count)
        return self._cuts[count]

    def _find(self, count: int) -> float:
        leading = int((self._at_least >= count).sum()) - 1
        larger, entries = int(self._at_least[leading + 1]), int(self._at_least[leading])

        def near() -> Tensor:
            found = [with_leading(delta, leading) for delta in self._deltas()]
            return torch.cat(found).sort(descending=True).values

        key, size = ("near", self._expert, leading), 4 * (entries - larger)
        kept = None if self._cache is None else self._cache.get(key, size, near)
        return float((near() if kept is None else kept)[count - larger - 1])


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
        whole: magnitudes of all tensors of the expert; None: the tensor stands alone.
    """

    tensor: str
    expert: str
    stored: Tensor
    is_full_checkpoint: bool
    base: Tensor
    dtype: torch.dtype
    cache: TensorCache | None = None
    whole: ModelMagnitudes | None = None

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
        return kth_magnitude((self,), "magnitudes", count, self.delta, self._select)

    def _select(self, count: int) -> float:
        if self.stored.numel() >= LARGE and self.dtype == torch.float32:
            from merging.rules.counting import TYPES, kth_difference  # as `blocks` imports `loops`

            base = self.base if self.is_full_checkpoint else None
            read = [self.stored] if base is None else [self.stored, base]
            if all(each.dtype in TYPES and each.device.type == "cpu" for each in read):
                return kth_difference(self.stored, base, count)
        return select_magnitude(self.delta(), count)

    def ranks(self) -> Tensor:
        """Returns twice the rank of every magnitude in its row, ``(entries,)`` int16 or int32.

        Rank 0 is the smallest; equal ones share the mean of their ranks, which may be a half. A
        row is what one index of the first dimension holds, a tensor of less than two dimensions
        is one row.
        """
        size = rank_type(self.row_length).itemsize * self.stored.numel()
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
    rows: ExpertTensors,
    kind: Hashable,
    count: int,
    values: Callable[[], Tensor],
    select: Callable[[int], float] | None = None,
) -> float:
    """Returns the `count`-th largest magnitude of what depends on `rows` alone.

    Args:
        rows: their cache keeps the magnitudes in order where they fit.
        kind: of the values, for the cache.
        count: from 1 to the number of values.
        values: returns all of them, in the dtype of the arithmetic.
        select: finds one of them where they are not kept; None: `select_magnitude` does.
    """
    cache, entries = rows[0].cache, rows[0].stored.numel()
    if cache is not None:
        size = rows[0].dtype.itemsize * entries
        rising = cache.get(_key(rows, kind), size, lambda: magnitudes_in_order(values()))
        if rising is not None:
            return float(rising[entries - count])
    return select_magnitude(values(), count) if select is None else select(count)


@dataclass(frozen=True, eq=False)
class ParameterStack:
    """One parameter of the base and of every expert.

    Args:
        base: ``(*shape)``, in its own dtype.
        dtype: of the arithmetic.
        large: whether this or another parameter of the model is so large that compiled loops are
            worth their start; None: whether this one has at least `LARGE` entries.
    """

    name: str
    base: Tensor
    rows: ExpertTensors
    dtype: torch.dtype
    large: bool | None = None
