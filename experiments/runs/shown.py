"""Long readings of weights, with progress."""

from torch import Tensor

from experiments.runs.progress import ProgressBar
from merging.stacks.layer_stack import layers_of
from merging.weights import LazyWeights, Weights


def shown(weights: Weights, progress: ProgressBar) -> Weights:
    """Returns the same weights, which show the progress of their first reading.

    A stack of layers stays as it is: what saves it asks it for its depth.
    """
    return weights if layers_of(weights) is not None else _Shown(weights, progress)


class _Shown(LazyWeights):
    """Weights that show the progress of their first reading."""

    def __init__(self, weights: Weights, progress: ProgressBar) -> None:
        super().__init__(weights)
        self._weights, self._progress = weights, progress
        self._unread = set(weights)

    def _tensor(self, name: str) -> Tensor:
        if name in self._unread:
            self._unread.remove(name)
            self._progress.update()
        return self._weights[name]
