"""What all spaces have in common whose genomes are vectors along named axes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.plan import Plan
from merging.spaces.axes import Axis, check, start
from merging.spaces.space import SearchSpace
from merging.weights import Weights


class VectorSpace(SearchSpace[Vector], Protocol):
    """A space whose genomes are float64 vectors, ``(axes,)``."""

    axes: tuple[Axis, ...]

    @property
    def corners(self) -> Mapping[str, Vector]:
        """The genome of every expert alone, by its name; empty where they are not points."""
        ...


class VectorGenomes(ABC):
    """First genome, JSON, domain and weights of a space with `axes`; its other half is `plan`."""

    gives: ClassVar[tuple[str, ...]] = ("axes", "corners")
    axes: tuple[Axis, ...]
    pool: ExpertPool
    dtype: torch.dtype | None

    @property
    def dimensions(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def corners(self) -> Mapping[str, Vector]:
        """None: experts alone are no points of this space, unless it says otherwise."""
        return {}

    @property
    def domain(self) -> Mapping[str, Any]:
        """Axes, and the genome of every expert alone."""
        return {"axes": self.axes, "corners": self.corners}

    def first(self) -> Vector:
        """Returns the start of every axis, ``(axes,)`` float64."""
        return start(self.axes)

    @abstractmethod
    def plan(self, genome: Vector) -> Plan:
        """Returns the plan of `genome`, ``(axes,)``."""

    def decode(self, genome: Vector) -> Weights:
        """Returns the weights of `genome`, computed when read; same genome, same bits."""
        return self.plan(genome).weights(self.pool, dtype=self.dtype)

    def canonical(self, genome: Vector) -> Vector:
        """Returns `genome` itself: every number is read."""
        return genome

    def to_json(self, genome: Vector) -> list[float]:
        """Returns the numbers."""
        numbers: list[float] = genome.tolist()
        return numbers

    def from_json(self, value: Any) -> Vector:
        """Returns the numbers as a vector; raises ValueError where one lies off its axis."""
        if not isinstance(value, list):
            raise ValueError(f"a genome of this space is a list of numbers, got {value!r}")
        genome = np.array(value, np.float64)
        check(self.axes, genome)
        return genome
