"""Saliency by Fisher information: how much the model's own predictions change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from evaluators.panel import Panel
from experiments.deduplication.loaded import HEAD, LoadedTarget
from experiments.gathering.fisher import gather_fisher
from experiments.gathering.items import items_of
from merging.deduplication.saliency import Norm


@dataclass(frozen=True)
class FisherSaliency:
    """The diagonal of the Fisher information; reads no label.

    Args:
        seed: of the tokens that are drawn from a language model.
    """

    norm: Norm = "l1"
    seed: int = 0
    reads_items = True

    def scores(
        self, target: LoadedTarget, panel: Panel | None, advance: Callable[[int], object]
    ) -> Mapping[str, Tensor]:
        """See `Saliency`."""
        assert panel is not None
        module = target.module
        return gather_fisher(
            target.resident,
            HEAD,
            items_of(panel.requests, target.resident.info.max_length),
            [name for name, _ in module.named_parameters()],
            module=module,
            seed=self.seed,
            expert=HEAD,
            advance=advance,
        )
