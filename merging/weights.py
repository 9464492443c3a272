"""Named tensors, the one form in which weights travel between the rooms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Weights = Mapping[str, Tensor]
"""Parameter name (as in the module's ``state_dict``) to tensor; may compute tensors when read."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; names the file or tensor, and the remedy."""
