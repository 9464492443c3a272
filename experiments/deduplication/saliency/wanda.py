"""Saliency by weight and activation: how much an element adds to a layer's output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from evaluators.panel import Panel
from experiments.deduplication.loaded import HEAD, LoadedTarget
from experiments.gathering.activations import gather_input_norms
from experiments.gathering.items import items_of
from merging.deduplication.saliency import Norm


@dataclass(frozen=True)
class WandaSaliency:
    """``|W_ij| ||x_j||_2``; reads no label. Weights of unknown layers count as they are.

    Source: Sun et al. 2023, Wanda, arXiv:2306.11695, equation 1.
    """

    norm: Norm = "l2"
    reads_items = True

    def scores(
        self, target: LoadedTarget, panel: Panel | None, advance: Callable[[int], object]
    ) -> Mapping[str, Tensor]:
        """See `Saliency`."""
        assert panel is not None
        items = items_of(panel.requests, target.resident.info.max_length)
        norms = gather_input_norms(target.resident, target.module, HEAD, items, advance=advance)
        return {
            name: weight.float().abs() * norms.get(name, 1.0)  # |W_ij| ||x_j||
            for name, weight in target.module.named_parameters()
        }
