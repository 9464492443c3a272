"""One expert as its base sees it: the interface, and the expert that is a full checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import PrivacyRecord, read_record
from merging.weights import Weights


class Expert(Protocol):
    """One expert, a full checkpoint or an adapter, seen from its base."""

    @property
    def source(self) -> str:
        """As the user named it."""
        ...

    @property
    def sha256(self) -> str:
        """Identity of its content."""
        ...

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes expert minus base, float32, into `out`."""
        ...

    def tensor(self, name: str, base: Tensor) -> Tensor:
        """Returns the expert's own tensor."""
        ...

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Yields every tensor that it stores."""
        ...

    def privacy(self) -> PrivacyRecord | None:
        """Returns the record beside its weights; None: there is none, so it is not private."""
        ...

    def to(self, device: torch.device) -> Expert:
        """Returns the same expert with what a merge reads held on `device`."""
        ...


@dataclass(frozen=True, eq=False)
class CheckpointExpert:
    """An expert that is a checkpoint of its own.

    Args:
        weights: its tensors by the base's names.
    """

    checkpoint: Checkpoint
    weights: Weights

    @property
    def source(self) -> str:
        """As the user named it."""
        return self.checkpoint.source

    @property
    def sha256(self) -> str:
        """Identity of its weight files."""
        return self.checkpoint.sha256

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes expert minus base, float32, into `out`."""
        out.copy_(self.weights[name]).sub_(base)

    def tensor(self, name: str, base: Tensor) -> Tensor:
        """Returns the expert's own tensor, in its own dtype."""
        return self.weights[name].to(base.device)

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Yields every tensor of the checkpoint, its head included."""
        yield from self.checkpoint.items()

    def privacy(self) -> PrivacyRecord | None:
        """Returns the record beside its weights; raises as `read_record` does."""
        return read_record(self.checkpoint.path)

    def to(self, device: torch.device) -> CheckpointExpert:
        """Returns the same expert with its tensors on `device`."""
        return replace(self, weights=held(self.weights, device))


def held(weights: Weights, device: torch.device) -> dict[str, Tensor]:
    """Returns copies on `device`: a memory-mapped file may change or vanish under a long run."""
    return {name: weights[name].to(device, copy=True) for name in weights}


def task_vector(
    expert: Expert, base: Weights, names: Iterable[str], device: torch.device
) -> Iterator[Tensor]:
    """Yields expert minus base of one tensor after the other, ``(*shape)`` float32."""
    for name in names:
        origin = base[name].to(device).float()
        delta = torch.empty(origin.shape, device=device)
        expert.fill(name, origin, delta)
        yield delta
