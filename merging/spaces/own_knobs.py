"""The knobs of the merge that a search starts from, first few numbers and then more."""

from collections.abc import Mapping, Sequence

import torch

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping, Layers, Whole, layer_of
from merging.method import MergeMethod
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan, Plan, uniform_plan
from merging.spaces.around import AroundSpace
from merging.spaces.coefficients import CoefficientSpace
from merging.spaces.vectors import VectorGenomes, VectorSpace
from merging.weights import Weights

_STEP = 0.3
"""Typical step of a scale, as a share of its start."""


class OwnKnobSpace(VectorGenomes):
    """Genome: the knobs of the start's own method, for every group of the finest grouping.

    Around a start whose method has no weight per expert, or whose knobs stand elsewhere than in
    its static merge, these are ``base + s (start - base) + sum_i w_i d_i``: see `AroundSpace`.

    `stages` say which numbers are one in coarser groupings, for strategies that begin with few.

    Args:
        initial: where the search starts; None: task arithmetic at its defaults.
        parts: into how many blocks of consecutive layers each stage cuts the model, the coarsest
            first, each a multiple of the one before; 1: the whole model is one group; otherwise
            what lies outside the layers is a group too.

    Raises:
        ValueError: `parts` is empty, not ascending, or below 1.
    """

    gives = ("axes", "corners", "stages")

    def __init__(
        self,
        pool: ExpertPool,
        *,
        initial: Plan | None = None,
        parts: Sequence[int] = (1, 4),
        dtype: torch.dtype | None = None,
    ) -> None:
        if not parts or list(parts) != sorted(set(parts)) or parts[0] < 1:
            raise ValueError(f"space.parts must be ascending from 1 or more, got {list(parts)}")
        self.pool, self.dtype = pool, dtype
        groupings = {_stage(part): _blocks(pool.names, part) for part in parts}
        *_, finest = groupings.values()
        self.inner = _space(pool, initial, finest, dtype)
        self.axes = self.inner.axes
        self.stages = _ties(pool.names, groupings, len(self.axes))

    @property
    def corners(self) -> Mapping[str, Vector]:
        """The genome of every expert alone, where the knobs are weights of a sum."""
        return self.inner.corners

    @property
    def domain(self) -> Mapping[str, object]:
        """Axes, corners, and stage to the number of the coarse axis that each axis reads."""
        return {**super().domain, "stages": self.stages}

    def plan(self, genome: Vector) -> Plan:
        """Returns the merge of a genome; raises ValueError where a number lies off its axis."""
        return self.inner.plan(genome)

    def decode(self, genome: Vector) -> Weights:
        """Returns the weights of `genome`; they are those of `plan`, bit for bit."""
        return self.inner.decode(genome)


def _stage(parts: int) -> str:
    return "the whole model" if parts == 1 else f"{parts} blocks of layers"


def _blocks(names: Sequence[str], parts: int) -> Grouping:
    """Returns the whole model as one group, or `parts` blocks of layers as far as it has them."""
    depth = max((1 + layer[1] for name in names if (layer := layer_of(name))), default=0)
    return Layers(every=-(-depth // parts)) if parts > 1 and depth > 1 else Whole()


def _space(
    pool: ExpertPool, start: Plan | None, grouping: Grouping, dtype: torch.dtype | None
) -> VectorSpace:
    """Returns the space of the method's own knobs, or of weights around a start without these."""
    method: MergeMethod = start.method if isinstance(start, MergePlan) else TaskArithmetic()
    per_expert = any(knob.name == "weight" and knob.per_expert for knob in method.knobs)
    if start is None or (per_expert and start == uniform_plan(method, Whole(), pool)):
        steps = {k.name: _STEP * k.start for k in method.knobs if k.name == "scale"}
        return CoefficientSpace(pool, method, grouping, scale=steps, dtype=dtype)
    return AroundSpace(pool, start, grouping, dtype=dtype)


def _ties(
    names: Sequence[str], groupings: Mapping[str, Grouping], axes: int
) -> Mapping[str, tuple[int, ...]]:
    """Returns stage to ``(axes,)``: which axis of its own grouping each of the finest reads.

    Axes stand group by group, as many for each.
    """
    *_, finest = groupings.values()
    fine = finest.assign(names)
    member = {group: name for name, group in fine.items()}  # of each group some parameter
    each = axes // len(member)
    stages: dict[str, tuple[int, ...]] = {}
    for stage, grouping in groupings.items():
        coarse = grouping.assign(names)
        place = {group: i for i, group in enumerate(dict.fromkeys(coarse.values()))}
        groups = [place[coarse[member[group]]] for group in dict.fromkeys(fine.values())]
        ties = tuple(each * group + i for group in groups for i in range(each))
        if ties not in stages.values():
            stages[stage] = ties
    return stages
