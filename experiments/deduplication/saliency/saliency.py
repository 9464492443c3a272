"""The interface of a saliency."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from evaluators.panel import Panel
from experiments.deduplication.loaded import LoadedTarget
from merging.deduplication.saliency import Norm


class Saliency(Protocol):
    """Scores of a model's elements; a block's saliency is the `norm` of its elements' scores."""

    @property
    def norm(self) -> Norm:
        """``l1``, ``l2`` or ``linf``."""
        ...

    @property
    def reads_items(self) -> bool:
        """Whether it needs items of data."""
        ...

    def scores(
        self, target: LoadedTarget, panel: Panel | None, advance: Callable[[int], object]
    ) -> Mapping[str, Tensor]:
        """Returns ``(*shape)`` of parameters by their names; none for those it says nothing of.

        Args:
            panel: public items; None where it reads none.
            advance: called with the number of items that are done.

        Raises:
            EvaluationError: the model's answers are not finite.
            ValueError: the items are of no use to it.
        """
        ...
