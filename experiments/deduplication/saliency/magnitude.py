"""Saliency by size: the numbers themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from evaluators.panel import Panel
from experiments.deduplication.loaded import LoadedTarget
from merging.deduplication.saliency import Norm


@dataclass(frozen=True)
class MagnitudeSaliency:
    """``|W|``; reads no data."""

    norm: Norm = "l2"
    reads_items = False

    def scores(
        self, target: LoadedTarget, panel: Panel | None, advance: Callable[[int], object]
    ) -> Mapping[str, Tensor]:
        """See `Saliency`."""
        return dict(target.module.named_parameters())
