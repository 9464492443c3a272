"""Named tensors, the one form in which weights travel between the packages."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Parameter name (as in the module's ``state_dict``) to tensor; may compute tensors when read."""


class LazyWeights(Mapping[str, Tensor]):
    """Weights of which every read computes or fetches one tensor; `_tensor` does.

    Args:
        names: of all tensors, in order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)

    @abstractmethod
    def _tensor(self, name: str) -> Tensor:
        """Returns the tensor of one of the names."""

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
