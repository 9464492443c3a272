"""DELLA: magnitude-aware random drop, then sign election."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from merging.method import Knob
from merging.rules.cache import ExpertTensor
from merging.rules.knobs import DENSITY, EPSILON, WEIGHT
from merging.rules.sparsified import SparsifiedConsensus
from merging.rules.sparsify import Sparsifier, magprune


@dataclass(frozen=True)
class Della(SparsifiedConsensus):
    """TIES of deltas whose entries are dropped and rescaled by the rank of their magnitude.

    `merging.rules.sparsify.magprune` has the probabilities. In plain numpy:
    tests/merging/methods/test_method_references.py::magpruned and ::consensus.

    Args:
        majority: as of TIES; so is `normalize`.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Deep et al. 2024, DELLA-Merging, arXiv:2406.11617.
    """

    expert_knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT, DENSITY, EPSILON)
    rescale: bool = True
    seed: int = 0

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns the mask: 1 with a probability p_i that rises with the magnitude, over p_i."""
        density, epsilon = knobs["density"], knobs["epsilon"]
        return magprune(row, density, epsilon, self.seed, rescale=self.rescale)  # m_i d_i / p_i
