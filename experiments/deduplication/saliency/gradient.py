"""Saliency by gradients: how fast the loss changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from evaluators.panel import Panel
from experiments.deduplication.loaded import HEAD, LoadedTarget
from experiments.gathering.gradients import examples_of, gather_gradients
from merging.deduplication.saliency import Norm


@dataclass(frozen=True)
class GradientSaliency:
    """The gradient of the loss, summed over all examples: the paper's order.

    Args:
        correct_only: of examples that are answered rightly alone, as the paper does for text.

    Source: arXiv:2503.02862 and its public code, which reads validation data for it, without
    noise; here the data is another's, and public.
    """

    norm: Norm = "l2"
    correct_only: bool = True
    reads_items = True

    def scores(
        self, target: LoadedTarget, panel: Panel | None, advance: Callable[[int], object]
    ) -> Mapping[str, Tensor]:
        """See `Saliency`."""
        assert panel is not None
        resident = target.resident
        examples = examples_of(panel, resident.info.max_length)
        return gather_gradients(
            resident,
            target.module,
            HEAD,
            examples,
            correct_only=self.correct_only,
            advance=advance,
        )
