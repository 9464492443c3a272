"""TIES: trim, elect signs, merge what agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merging.rules.blocks import Rule
from merging.rules.cache import ExpertTensor
from merging.rules.consensus import Majority, check_majority, disjoint_mean, elect_signs
from merging.rules.knobs import Inputs
from merging.rules.sparsified import Sparsified
from merging.rules.sparsify import Sparsifier, trim


@dataclass(frozen=True)
class Ties(Sparsified):
    """Trims every delta to its largest magnitudes, elects a sign per entry, averages what has it.

    ``base + scale mean_{i: sign(w_i d_i) = s} w_i d_i``, ``s = sign(sum_i w_i d_i)``, after
    trimming to ``round(density n)`` entries and, as in the authors' code, whatever equals the
    smallest of them: of experts in bfloat16 that moved by a few steps of its grid far more may
    stay. The paper keeps 20 % (density 0.2), scale 1. Entries whose signs balance exactly stay at
    the base. In plain numpy:
    tests/merging/methods/test_method_references.py::trimmed and ::consensus.

    Args:
        majority: ``mass`` elects the sign of the sum, ``count`` the sign of most experts.
        normalize: divide by ``sum |w_i|`` over the experts that agree; otherwise a plain sum.

    Source: Yadav et al. 2023, TIES-Merging, algorithm 1, arXiv:2306.01708.
    """

    majority: Majority = "mass"
    normalize: bool = True

    def __post_init__(self) -> None:
        check_majority(self.majority)

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns step 1 of the algorithm: trim."""
        return trim(row, knobs["density"])  # d_i <- d_i where |d_i| is of its largest, else 0

    def combine(self, inputs: Inputs, sparsifiers: Sequence[Sparsifier]) -> Rule:
        """Returns steps 2 and 3: elect signs, and the disjoint mean."""
        signs = elect_signs(inputs, sparsifiers, self.majority)  # s = sign(sum_i w_i d_i)
        # base + scale mean_{i: sign(w_i d_i) = s} w_i d_i
        return disjoint_mean(inputs, signs, normalize=self.normalize)
