"""Model stock: the average of the experts, drawn back towards the base."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.consensus import weighted_sum
from merging.rules.knobs import SCALE, read
from merging.rules.spherical import cosine, direction_and_length
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class ModelStock:
    """``base + scale t mean(d)`` with ``t = N cos / (1 + (N - 1) cos)``, N the number of experts.

    cos is the mean of the cosines between all pairs of deltas (FusionBench averages angles), a
    zero delta counting as orthogonal. It does not depend on the size of the deltas. A negative
    mean is taken as 0: deltas that oppose each other have no common centre but the base, and t
    would leave [0, 1]. Needs at least two experts. In plain numpy:
    tests/merging/methods/test_method_references.py::model_stock.

    Source: Jang et al. 2024, Model stock, ratio for N models, arXiv:2403.19522. The scale is ours,
    so that a search has something to vary; the paper's is 1.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (SCALE,)

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the shortened average; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs, least=2)
        if inputs.unmoved:
            return base.clone()
        count = len(inputs.deltas)
        units = [direction_and_length(delta)[0] for delta in inputs.deltas]
        pairs = [cosine(u, v) for u, v in combinations(units, 2)]
        cos = min(1.0, max(0.0, sum(pairs) / len(pairs)))
        t = count * cos / (1 + (count - 1) * cos)  # N cos / (1 + (N - 1) cos)
        average = weighted_sum(inputs.deltas, [1 / count] * count)
        return base.add(average, alpha=inputs.shared["scale"] * t)
