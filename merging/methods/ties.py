"""TIES: trim, elect signs, merge what agrees."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from merging.rules.cache import ExpertTensor
from merging.rules.sparsified import SparsifiedConsensus
from merging.rules.sparsify import Sparsifier, trim, trim_model

Trim: TypeAlias = Literal["tensor", "model"]


@dataclass(frozen=True)
class Ties(SparsifiedConsensus):
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
        trim: ``tensor`` keeps the density of every tensor, as mergekit does; ``model`` that of all
            merged tensors as one vector, as the paper and its code do: tensors that moved more
            keep more. It takes two passes over the experts before the first tensor is merged.

    Source: Yadav et al. 2023, TIES-Merging, algorithm 1, arXiv:2306.01708.
    """

    trim: Trim = "tensor"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trim not in get_args(Trim):
            raise ValueError(f"trim is {self.trim!r}, expected one of {get_args(Trim)}")

    def sparsifier(self, row: ExpertTensor, knobs: Mapping[str, float]) -> Sparsifier:
        """Returns step 1 of the algorithm: trim; steps 2 and 3 are inherited."""
        cut = trim if self.trim == "tensor" else trim_model
        return cut(row, knobs["density"])  # d_i <- d_i where |d_i| is of its largest, else 0
