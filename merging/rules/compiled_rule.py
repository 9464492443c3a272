"""A rule written in numbers, so that one compiled loop can run it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch

from merging.rules.cache import ExpertTensors


class RuleKind(IntEnum):
    """What a rule computes of base and experts; see the rules of `merging.rules.consensus`."""

    COMBINATION = 0
    SUM = 1
    CONSENSUS = 2


class SelectionKind(IntEnum):
    """How a sparsifier keeps entries; see the classes of `merging.rules.sparsify`."""

    ALL = 0
    LARGEST = 1
    BAND = 2
    MASKED = 3
    DRAWN = 4
    PRUNED = 5


class EntryType(IntEnum):
    """The dtype of what lies at an address."""

    FLOAT = 0
    BFLOAT = 1
    HALF = 2
    SHORT = 3
    INTEGER = 4


ENTRY_TYPES = {
    torch.float32: EntryType.FLOAT,
    torch.bfloat16: EntryType.BFLOAT,
    torch.float16: EntryType.HALF,
    torch.int16: EntryType.SHORT,
    torch.int32: EntryType.INTEGER,
}


class PackedSelection(NamedTuple):
    """A sparsifier as `merging.rules.kernels.run_rule` reads it; its docstring has the columns."""

    kind: SelectionKind
    numbers: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()


class Packable(Protocol):
    """A sparsifier that a compiled rule holds, and with it the tensors it names by address."""

    def packed(self) -> PackedSelection:
        """Returns it in numbers, for float32 arithmetic."""
        ...


@dataclass(frozen=True)
class CompiledRule:
    """A rule in numbers, per expert in the order of `rows`.

    Args:
        coefficients: of the experts in a combination or sum; weights before the election.
        base_coefficient: of a combination.
        sparsifiers: of a sum or a consensus.
        post_election_weights: of a consensus: factors of what agrees with the sign.
        normalizers: of a consensus: what each expert adds to the divisor where it agrees.
        scale: of a consensus: factor of the sum.
        by_count: of a consensus: whether most experts decide, and not the larger mass.
        normalize: of a consensus: whether to divide.
    """

    kind: RuleKind
    rows: ExpertTensors
    coefficients: Sequence[float]
    base_coefficient: float = 0.0
    sparsifiers: Sequence[Packable] = ()
    post_election_weights: Sequence[float] = ()
    normalizers: Sequence[float] = ()
    scale: float = 1.0
    by_count: bool = False
    normalize: bool = False


class Compilable(ABC):
    """A rule that can be written in numbers."""

    @abstractmethod
    def compiled(self) -> CompiledRule:
        """Returns it in numbers, with the same results to the last bit."""
