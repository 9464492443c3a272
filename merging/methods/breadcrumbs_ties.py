"""Model breadcrumbs with the sign election of TIES."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from merging.method import Knob
from merging.rules.cache import ExpertTensor
from merging.rules.knobs import DENSITY, GAMMA, WEIGHT
from merging.rules.sparsified import SparsifiedConsensus
from merging.rules.sparsify import Sparsifier, band


@dataclass(frozen=True)
class BreadcrumbsTies(SparsifiedConsensus):
    """TIES of deltas that lose their largest entries too; `majority`, `normalize` as there.

    In plain numpy: tests/merging/methods/test_method_references.py::banded and ::consensus.

    Source: Davari & Belilovsky 2023, Model breadcrumbs, arXiv:2312.06795. The masks are per
    tensor, and the density says what is left after both cuts, as in mergekit. Signs:
    Yadav et al. 2023, arXiv:2306.01708.
    """

    expert_knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT, DENSITY, GAMMA)

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns the mask: 0 for the gamma n largest entries and for the smallest."""
        return band(row, knobs["density"], knobs["gamma"])  # m_i d_i
