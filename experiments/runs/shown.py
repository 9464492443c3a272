"""Long readings of weights, with progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from experiments.runs.progress import megabytes
from merging.checkpoints.experts import ExpertPool
from merging.saving.save import saved_bytes
from merging.stacks.layer_stack import layers_of
from merging.weights import LazyWeights, Weights


@contextmanager
def writing(
    pool: ExpertPool, weights: Weights, dtype: torch.dtype | None, what: str
) -> Iterator[Weights]:
    """Yields the same weights, which show how many bytes of the model are merged and written."""
    size = saved_bytes(pool, dtype, weights=weights) // (1 + len(pool.heads))
    with megabytes(size, what) as (_, on_bytes):
        yield shown(weights, lambda tensor: on_bytes(tensor.nbytes))


def shown(weights: Weights, on_first: Callable[[Tensor], object]) -> Weights:
    """Returns the same weights, which tell `on_first` of every tensor when it is first read.

    A stack of layers stays as it is: what saves it asks it for its depth.
    """
    return weights if layers_of(weights) is not None else _Shown(weights, on_first)


class _Shown(LazyWeights):
    """Weights whose first reading is told."""

    def __init__(self, weights: Weights, on_first: Callable[[Tensor], object]) -> None:
        super().__init__(weights)
        self._weights, self._on_first = weights, on_first
        self._unread = set(weights)

    def _tensor(self, name: str) -> Tensor:
        tensor = self._weights[name]
        if name in self._unread:
            self._unread.remove(name)
            self._on_first(tensor)
        return tensor
