"""DARE with TIES: random drop and rescale, then sign election."""

from collections.abc import Mapping
from dataclasses import dataclass

from merging.rules.cache import ExpertTensor
from merging.rules.sparsified import SparsifiedConsensus
from merging.rules.sparsify import Sparsifier, drop


@dataclass(frozen=True)
class DareTies(SparsifiedConsensus):
    """TIES of deltas that are not trimmed but dropped and rescaled at random.

    The mean over experts is taken where an entry survived, so it is unbiased for one expert only;
    ``normalize=False`` sums instead. In plain numpy:
    tests/merging/methods/test_method_references.py::dropped and ::consensus.

    Args:
        majority: as of TIES; so is `normalize`.
        rescale: divide what is kept by its probability, so that the mean over seeds is exact.
        seed: of the noise, which also depends on the expert's identity and the tensor's name.

    Source: Yu et al. 2024, Language models are super Mario (DARE), arXiv:2311.03099; signs:
    Yadav et al. 2023, TIES-Merging, arXiv:2306.01708.
    """

    rescale: bool = True
    seed: int = 0

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns the mask: 1 with probability ``p_i = density``, over p_i."""
        return drop(row, knobs["density"], self.seed, rescale=self.rescale)  # m_i d_i / p_i
