"""Named tensors, the one form in which weights travel between the rooms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Parameter name (as in the module's ``state_dict``) to tensor; may compute tensors when read."""


@runtime_checkable
class InPlaceWeights(Protocol):
    """Weights that can be computed where they are to lie, without a copy on the way."""

    def shape(self, name: str) -> torch.Size:
        """Returns the tensor's shape without computing it."""
        ...

    def write(self, name: str, out: Tensor) -> None:
        """Writes into `out`, ``(*shape)``, what reading `name` would give."""
        ...


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; names the file or tensor, and the remedy."""
