"""The interface of a merge method: one tensor of the base and of every expert in, one out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


class MergeError(ValueError):
    """A merge that cannot be computed from these experts or knobs; the message says why."""


@dataclass(frozen=True)
class Knob:
    """One number that a merge method reads: per expert (weight, density) or shared (scale).

    Args:
        name: what recipes, configurations and reports call it.
        low: smallest value with a meaning; ``-inf`` where every real number has one.
        high: largest value with a meaning.
        start: neutral value, used by a static merge and as the centre of a search.
        per_expert: True: the method reads one value per expert, shape ``(experts,)``;
            False: one value for all, shape ``()``.
        scale: typical step of a search in the knob's own units.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    start: float = 1.0
    per_expert: bool = True
    scale: float = 0.3

    def __post_init__(self) -> None:
        if not self.low <= self.start <= self.high:
            raise ValueError(
                f"knob {self.name!r}: start {self.start} lies outside [{self.low}, {self.high}]"
            )


@dataclass(frozen=True)
class Slot:
    """Where a tensor sits: its parameter name and whose deltas are stacked, in order.

    Args:
        name: parameter name in the module's ``state_dict``.
        experts: content identity of each expert; random methods seed an expert's noise by it, so
            that the noise belongs to the expert and not to its place in the list.
    """

    name: str
    experts: tuple[str, ...]


@runtime_checkable
class MergeMethod(Protocol):
    """Merges one parameter at a time; a frozen dataclass whose fields are its fixed options."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """The numbers that `merge` reads, with their ranges."""
        ...

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the merged parameter.

        Args:
            slot: name of the parameter and identity of the experts.
            base: ``(*shape)``, float32 (float64 in tests); may have 0 elements or no dimension.
            deltas: ``(experts, *shape)``, dtype of `base`: expert minus base.
            knobs: a tensor for every knob, dtype of `base`, ``(experts,)`` or ``()``.

        Returns:
            ``(*shape)``, dtype of `base`; a new tensor, no argument is changed.

        Raises:
            MergeError: these experts or knob values cannot be merged (wrong number of experts,
                weights that sum to zero).
        """
        ...
