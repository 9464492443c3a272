"""The interface of a search space: a stateless map from genomes to weights."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from merging.plan import MergePlan
from merging.spaces.axes import Axis, Vector
from merging.weights import Weights

G_contra = TypeVar("G_contra", contravariant=True)


class SearchSpace(Protocol[G_contra]):
    """Decodes genomes; same genome, same weights, bit for bit."""

    def decode(self, genome: G_contra) -> Weights:
        """Returns the weights of `genome`; they may be computed when read."""
        ...

    def describe(self, genome: G_contra) -> dict[str, Any]:
        """Returns JSON that is enough to rebuild the weights from the same experts."""
        ...


class VectorSpace(SearchSpace[Vector], Protocol):
    """A space whose genomes are float64 vectors along named axes."""

    axes: tuple[Axis, ...]

    def plan(self, genome: Vector) -> MergePlan:
        """Returns the merge that `genome` stands for."""
        ...

    def canonical(self, genome: Vector) -> Vector:
        """Returns the one genome that stands for all that decode to the same weights."""
        ...
