"""A rule written in numbers, so that one compiled loop can follow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from torch import Tensor

from merging.rules.cache import ExpertTensors


class RuleKind(Enum):
    """What a rule computes of rows; see the rules of `merging.rules.consensus`."""

    COMBINATION = auto()
    SUM = auto()
    CONSENSUS = auto()


class SelectionKind(Enum):
    """How a selection keeps entries; see `merging.rules.sparsify`."""

    ALL = auto()
    LARGEST = auto()
    BAND = auto()
    MASK = auto()
    DRAWN = auto()
    PRUNED = auto()


@dataclass(frozen=True)
class Selection:
    """What is kept of one row.

    Args:
        how: decides what the rest means.
        numbers: at most four.
        last: positions in the parameter, at most two.
        tensors: ``(entries of the parameter,)`` each, at most two, with a value per entry.
    """

    how: SelectionKind
    numbers: tuple[float, ...] = ()
    last: tuple[int, ...] = ()
    tensors: tuple[Tensor, ...] = ()


ALL = Selection(SelectionKind.ALL)


@dataclass(frozen=True)
class CompiledRule:
    """A rule in numbers.

    Args:
        kind: decides what the rest means.
        rows: the experts.
        coefficients: one per row; of a consensus, its votes.
        rest: the base's coefficient in a combination.
        selections: of a sum or a consensus, one per row.
        later: of a consensus: a factor per row after the election.
        masses: of a consensus: what each row adds to the divisor where it agrees.
        scale: of a consensus: factor of the sum.
        by_count: of a consensus: whether most rows decide.
        normalize: of a consensus: whether to divide.
    """

    kind: RuleKind
    rows: ExpertTensors
    coefficients: Sequence[float]
    rest: float = 0.0
    selections: Sequence[Selection] = ()
    later: Sequence[float] = ()
    masses: Sequence[float] = ()
    scale: float = 1.0
    by_count: bool = False
    normalize: bool = False


class Compilable(ABC):
    """A rule that can be written in numbers."""

    @abstractmethod
    def coded(self) -> CompiledRule:
        """Returns it in numbers, with the same results to the last bit."""
