"""Lineage space: individuals bred from founders by crossover and mutation of task vectors."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from merging.checkpoints.experts import ExpertPool
from merging.lineages.lineage import (
    Founder,
    Lineage,
    canonical,
    founders,
    lineage_from_json,
    lineage_to_json,
)
from merging.lineages.replay import LineagePlan, LineageWeights, Replay
from merging.paths.path import BASE, START
from merging.plan import Plan
from merging.weights import Weights


class LineageSpace:
    """Genome: a `Lineage`, about 50 bytes per ancestor; individuals share ancestors, not weights.

    No individual is stored: beside the pool and the resident model a population of any size takes
    one model in float32 where there is a start, and nothing that grows with the model elsewhere.
    Reading an individual takes time in proportion to its ancestors.

    Args:
        pool: base and experts; every expert is a founder.
        initial: plan of one more founder, ``start``; None: there is none.
        base: whether the base model is a founder as well, under the name ``base``. Lineages that
            name it are decoded in either case.

    Raises:
        MergeError: an expert is named ``start`` or ``base``.
    """

    gives: ClassVar[tuple[str, ...]] = ("founders",)

    def __init__(
        self,
        pool: ExpertPool,
        *,
        initial: Plan | None = None,
        base: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pool, self.initial, self.base, self.dtype = pool, initial, base, dtype
        self._replay = Replay(pool, initial, keep=True)

    @property
    def dimensions(self) -> int:
        """Number of parameters that move."""
        return sum(tensor.entries for tensor in self._replay.slices.values())

    @property
    def domain(self) -> Mapping[str, Any]:
        """The founders' names: experts in the pool's order, then start, then base."""
        start = () if self.initial is None else (START,)
        return {"founders": (*self.pool.expert_names, *start, *((BASE,) if self.base else ()))}

    def first(self) -> Lineage:
        """Returns the start; where there is none, the first expert."""
        return Founder(self.pool.expert_names[0] if self.initial is None else START)

    def plan(self, genome: Lineage) -> LineagePlan:
        """Returns the plan of the individual; raises MergeError for an unknown founder."""
        self._replay.check(genome)
        return LineagePlan(self.initial if START in founders(genome) else None, genome)

    def decode(self, genome: Lineage) -> Weights:
        """Returns the weights of `genome`, computed when read; those of `plan`, bit for bit."""
        return LineageWeights(self._replay, genome, self.dtype)

    def canonical(self, genome: Lineage) -> Lineage:
        """Returns the individual without operators that change nothing."""
        return canonical(genome)

    def to_json(self, genome: Lineage) -> dict[str, Any]:
        """Returns the lineage, its shared ancestors once."""
        return lineage_to_json(genome)

    def from_json(self, value: Any) -> Lineage:
        """Returns the lineage; raises ValueError where it is none, or of unknown founders."""
        genome = lineage_from_json(value)
        self._replay.check(genome)
        return genome
