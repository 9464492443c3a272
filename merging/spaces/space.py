"""The interface of a search space: a map from genomes to weights."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from merging.checkpoints.experts import ExpertPool
from merging.plan import Plan
from merging.weights import Weights

G = TypeVar("G")


class SearchSpace(Protocol[G]):
    """Decodes genomes; same genome, same weights, bit for bit.

    Attributes:
        gives: the keys of `domain`, known before there is a pool: what decides which strategies
            can search this space.
    """

    gives: ClassVar[tuple[str, ...]]
    pool: ExpertPool

    @property
    def dimensions(self) -> int:
        """How many numbers a search can change."""
        ...

    @property
    def domain(self) -> Mapping[str, Any]:
        """What strategies may have to know, by the names of their constructors' arguments.

        Vectors: ``axes`` and ``corners``, the genome of every expert alone where there is one.
        Paths: ``starts``, the points that a path may start from. Lineages: ``founders``.
        """
        ...

    def first(self) -> G:
        """Returns the genome that a search starts from."""
        ...

    def plan(self, genome: G) -> Plan:
        """Returns what `genome` stands for, enough to rebuild it from the same experts."""
        ...

    def decode(self, genome: G) -> Weights:
        """Returns the weights of `genome`; they may be computed when read."""
        ...

    def canonical(self, genome: G) -> G:
        """Returns the one genome that stands for all that decode to the same weights."""
        ...

    def to_json(self, genome: G) -> Any:
        """Returns `genome` as JSON values, every number exactly."""
        ...

    def from_json(self, value: Any) -> G:
        """Returns the genome that `to_json` wrote; raises ValueError where it is none."""
        ...
