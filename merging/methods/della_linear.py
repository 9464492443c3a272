"""DELLA without sign election: magnitude-aware drop, then task arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from merging.method import Knob
from merging.rules.cache import ExpertTensor
from merging.rules.knobs import DENSITY, EPSILON, WEIGHT
from merging.rules.sparsified import SparsifiedSum
from merging.rules.sparsify import Sparsifier, magprune


@dataclass(frozen=True)
class DellaLinear(SparsifiedSum):
    """``base + scale sum_i w_i m_i d_i / p_i``, p_i rising with magnitude within each row.

    `merging.rules.sparsify.magprune` has the formula of p. In plain numpy:
    tests/merging/methods/test_method_references.py::magpruned and ::total.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617.
    """

    expert_knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT, DENSITY, EPSILON)
    rescale: bool = True
    seed: int = 0

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns the mask over p_i."""
        density, epsilon = knobs["density"], knobs["epsilon"]
        return magprune(row, density, epsilon, self.seed, rescale=self.rescale)  # m_i d_i / p_i
