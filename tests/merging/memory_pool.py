"""A pool of experts in memory: plain tensors instead of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from merging.checkpoints.experts import ExpertPool


@dataclass(frozen=True, eq=False)
class MemoryExpert:
    """An expert given by its deltas."""

    sha256: str
    deltas: Mapping[str, Tensor]
    source: str = "memory"

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        out.copy_(self.deltas[name])

    def tensor(self, name: str, base: Tensor) -> Tensor:
        return (base.float() + self.deltas[name]).to(base.dtype)

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.deltas.items()

    def to(self, device: torch.device) -> MemoryExpert:
        return self


class MemoryBase(dict[str, Tensor]):
    """A base checkpoint, as far as merges read it."""

    source = "memory"

    def shape(self, name: str) -> torch.Size:
        return self[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self[name].dtype


def memory_pool(base: Mapping[str, Tensor], experts: Sequence[Mapping[str, Tensor]]) -> ExpertPool:
    """Returns a pool of experts ``expert0``, ``expert1`` ... with these deltas."""
    root = MemoryBase(base)
    opened: dict[str, Any] = {
        f"expert{i}": MemoryExpert(f"sha-{i}", deltas) for i, deltas in enumerate(experts)
    }
    return ExpertPool(cast(Any, root), opened, tuple(base), (), torch.device("cpu"), root)


def random_pool(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    experts: int = 3,
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> ExpertPool:
    """Returns a pool with normal weights and normal deltas of standard deviation `scale`."""
    rng = torch.Generator().manual_seed(seed)
    base = {n: torch.randn(shape, generator=rng).to(dtype) for n, shape in shapes.items()}
    deltas = [
        {n: scale * torch.randn(shape, generator=rng) for n, shape in shapes.items()}
        for _ in range(experts)
    ]
    return memory_pool(base, deltas)
