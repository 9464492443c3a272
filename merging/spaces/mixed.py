"""Mixed space: which method, which experts, and the coefficients of the chosen method."""

from collections.abc import Mapping, Sequence

import torch

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping
from merging.method import Knob, MergeError, MergeMethod
from merging.plan import MergePlan
from merging.spaces.axes import Axis, Choice, check, start
from merging.spaces.coefficients import knob_axes, read_knobs
from merging.spaces.vectors import VectorGenomes


class MixedSpace(VectorGenomes):
    """Genome: method index, one yes/no per expert, then the knobs of every method in turn.

    Args:
        methods: name to merge method, at least one.
        grouping: which parameters share coefficients, for every method.
    """

    def __init__(
        self,
        pool: ExpertPool,
        methods: Mapping[str, MergeMethod],
        grouping: Grouping,
        *,
        choose_experts: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not methods:
            raise MergeError("a mixed space needs at least one method: list some under methods")
        self.pool, self.grouping, self.dtype = pool, grouping, dtype
        self.methods = dict(methods)
        self.groups = tuple(dict.fromkeys(grouping.assign(pool.names).values()))
        self._choosing = pool.expert_names if choose_experts else ()
        head: list[Axis] = [Choice("method", tuple(self.methods))]
        head += [Choice(f"use/{expert}", ("no", "yes"), start=1) for expert in self._choosing]
        self._spans: dict[str, slice] = {}
        self._owners: list[str | None] = [None] * len(head)
        axes = list(head)
        for name, method in self.methods.items():
            added = knob_axes(method.knobs, self.groups, pool.expert_names, f"{name}/")
            self._spans[name] = slice(len(axes), len(axes) + len(added))
            axes.extend(added)
            self._owners += _owners(method.knobs, self.groups, pool.expert_names)
        self.axes = tuple(axes)

    def plan(self, genome: Vector) -> MergePlan:
        """Returns the merge that `genome`, ``(axes,)`` float64, stands for.

        Raises:
            ValueError: wrong length, or a value outside its axis; names the axis.
            MergeError: no expert is chosen.
        """
        check(self.axes, genome)
        name, experts = self._chosen(genome)
        method = self.methods[name]
        if not experts:
            raise MergeError("no expert is chosen: at least one must take part")
        coefficients = read_knobs(
            genome[self._spans[name]],
            method.knobs,
            frozenset(knob.name for knob in method.knobs),
            self.groups,
            self.pool.expert_names,
        )
        kept = {
            group: {
                knob: {e: value[e] for e in experts} if isinstance(value, Mapping) else value
                for knob, value in knobs.items()
            }
            for group, knobs in coefficients.items()
        }
        return MergePlan(method, self.grouping, experts, kept)

    def canonical(self, genome: Vector) -> Vector:
        """Returns `genome` with every number that is not read at its start.

        These are the knobs of the methods that are not chosen, and those of the experts that
        take no part.
        """
        name, experts = self._chosen(genome)
        head = 1 + len(self._choosing)
        fixed = start(self.axes)
        fixed[:head] = genome[:head]
        span = self._spans[name]
        for i in range(span.start, span.stop):
            if self._owners[i] is None or self._owners[i] in experts:
                fixed[i] = genome[i]
        return fixed

    def _chosen(self, genome: Vector) -> tuple[str, tuple[str, ...]]:
        """Returns the name of the method and those of the experts that take part."""
        flags = genome[1 : 1 + len(self._choosing)]
        unused = {e for e, flag in zip(self._choosing, flags, strict=True) if not flag}
        experts = tuple(e for e in self.pool.expert_names if e not in unused)
        return tuple(self.methods)[int(genome[0])], experts


def _owners(
    knobs: Sequence[Knob], groups: Sequence[str], experts: Sequence[str]
) -> list[str | None]:
    """Returns whose number each axis of `knob_axes` is; None: that of all experts."""
    return [
        expert
        for _ in groups
        for knob in knobs
        for expert in (experts if knob.per_expert else (None,))
    ]
