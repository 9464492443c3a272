"""Mixed space: which method, which experts, and the coefficients of the chosen method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from merging.experts import ExpertPool
from merging.grouping import Grouping
from merging.method import MergeError, MergeMethod
from merging.plan import MergePlan
from merging.spaces.axes import Axis, Choice, Vector, check
from merging.spaces.coefficients import knob_axes, read_knobs
from merging.weights import Weights


class MixedSpace:
    """Genome: method index, one yes/no per expert, then the knobs of every method in turn.

    Args:
        pool: base and experts.
        methods: name to merge method, at least one.
        grouping: which parameters share coefficients, for every method.
        choose_experts: also search which experts take part.
        dtype: of decoded weights; None: the base's.
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
        axes = list(head)
        for name, method in self.methods.items():
            added = knob_axes(method.knobs, self.groups, pool.expert_names, f"{name}/")
            self._spans[name] = slice(len(axes), len(axes) + len(added))
            axes.extend(added)
        self.axes = tuple(axes)

    def plan(self, genome: Vector) -> MergePlan:
        """Returns the merge that `genome`, ``(axes,)`` float64, stands for.

        Raises:
            ValueError: wrong length, or a value outside its axis; names the axis.
            MergeError: no expert is chosen.
        """
        check(self.axes, genome)
        name = tuple(self.methods)[int(genome[0])]
        method = self.methods[name]
        flags = genome[1 : 1 + len(self._choosing)]
        unused = {e for e, flag in zip(self._choosing, flags, strict=True) if not flag}
        experts = tuple(e for e in self.pool.expert_names if e not in unused)
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

    def decode(self, genome: Vector) -> Weights:
        """Returns the weights of `genome`, computed when read; same genome, same bits."""
        return self.plan(genome).weights(self.pool, dtype=self.dtype)

    def describe(self, genome: Vector) -> dict[str, Any]:
        """Returns the plan as JSON."""
        return self.plan(genome).describe()

    def canonical(self, genome: Vector) -> Vector:
        """Returns `genome` with the knobs of methods that are not chosen at their start.

        Two genomes with the same canonical form decode to the same weights.
        """
        chosen = self._spans[tuple(self.methods)[int(genome[0])]]
        fixed = np.array([axis.start for axis in self.axes], dtype=np.float64)
        head = 1 + len(self._choosing)
        fixed[:head], fixed[chosen] = genome[:head], genome[chosen]
        return fixed
