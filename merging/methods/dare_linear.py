"""DARE: random drop and rescale, then task arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass

from merging.rules.cache import ExpertTensor
from merging.rules.sparsified import SparsifiedSum
from merging.rules.sparsify import Sparsifier, drop


@dataclass(frozen=True)
class DareLinear(SparsifiedSum):
    """``base + scale sum_i w_i m_i d_i / p_i``, every entry of m_i 1 with probability p_i.

    p_i is the density. In plain numpy:
    tests/merging/methods/test_method_references.py::dropped and ::total.

    Args:
        normalize: divide the sum by ``sum_i w_i``; the scale then starts at 1.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Yu et al. 2024, Language models are super Mario (DARE), arXiv:2311.03099.
    """

    rescale: bool = True
    seed: int = 0

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns the mask over p_i."""
        return drop(row, knobs["density"], self.seed, rescale=self.rescale)  # m_i d_i / p_i
