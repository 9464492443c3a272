"""Coefficient space: a number for every group, knob and expert of one merge method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping
from merging.method import Knob, MergeError, MergeMethod
from merging.plan import MergePlan
from merging.seeding import stable_seed
from merging.spaces.axes import Axis, Real, check
from merging.spaces.vectors import VectorGenomes


class CoefficientSpace(VectorGenomes):
    """Genome: one float64 per (group, knob, expert), shared knobs once per group.

    Weights are unbounded by default: negative ones and those above 1 leave the convex hull of
    the experts, which is the point.

    Args:
        method: its knobs are the search's dimensions.
        grouping: which parameters share coefficients.
        knobs: the knobs that are searched; None: all. The others stay at their value in `start`.
        start: knob name to the centre of the search, where it differs from the knob's own;
            ``average``: 1 / number of experts; ``random``: of each axis another in [0, 1).
        bounds: knob name to (low, high), where narrower than the knob's own.
        scale: knob name to the typical step of the search.
        seed: of random starts.

    Raises:
        MergeError: `knobs`, `start`, `bounds` or `scale` name a knob that the method lacks, a
            bound lies outside the knob's own range, a start outside its bounds, or a scale is
            not positive.
    """

    def __init__(
        self,
        pool: ExpertPool,
        method: MergeMethod,
        grouping: Grouping,
        *,
        knobs: Sequence[str] | None = None,
        start: Mapping[str, float | str] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        scale: Mapping[str, float] | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pool, self.method, self.grouping, self.dtype = pool, method, grouping, dtype
        self.groups = tuple(dict.fromkeys(grouping.assign(pool.names).values()))
        given = start or {}
        drawn = [k for k, v in given.items() if v == "random"]
        _refuse_unknown(method, "start", drawn)
        centres = {
            k: _as_number(k, v, len(pool.expert_names)) for k, v in given.items() if k not in drawn
        }
        self._knobs = adjust(method, centres, bounds or {}, scale or {})
        searched = [knob.name for knob in self._knobs] if knobs is None else list(knobs)
        _refuse_unknown(method, "knobs", searched)
        self._searched = frozenset(searched)
        axes = knob_axes(
            [knob for knob in self._knobs if knob.name in self._searched],
            self.groups,
            pool.expert_names,
        )
        self.axes: tuple[Axis, ...] = tuple(
            _from_anywhere(a, seed) if a.name.partition("/")[0] in drawn else a for a in axes
        )
        if not self.axes:
            raise MergeError(
                f"{type(method).__name__} leaves nothing to search: "
                "choose a method with knobs, or merge without a search"
            )

    def plan(self, genome: Vector) -> MergePlan:
        """Returns the merge of a genome; raises ValueError where a number lies off its axis."""
        check(self.axes, genome)
        coefficients = read_knobs(
            genome, self._knobs, self._searched, self.groups, self.pool.expert_names
        )
        return MergePlan(self.method, self.grouping, self.pool.expert_names, coefficients)

    @property
    def corners(self) -> Mapping[str, Vector]:
        """The genome of every expert alone; none for a method that does more than add them up.

        The expert's own weights are 1, all others 0; a scale is 1, searched or fixed.
        """
        fixed = {k.name: k.start for k in self._knobs if k.name not in self._searched}
        others = {knob.name for knob in self._knobs} - {"weight", "scale"}
        if others or "weight" not in self._searched or fixed.get("scale", 1.0) != 1.0:
            return {}
        owners = [axis.name.rpartition("/")[2] for axis in self.axes]
        return {
            expert: np.array([float(owner in (expert, "all")) for owner in owners])
            for expert in self.pool.expert_names
        }


def _as_number(knob: str, start: float | str, experts: int) -> float:
    """Returns a start as a number."""
    if start == "average":
        return 1 / experts
    if isinstance(start, str):
        raise MergeError(f"start of {knob}: {start!r} is neither a number, average nor random")
    return start


def _from_anywhere(axis: Real, seed: int) -> Real:
    """Returns the axis with a start in [0, 1), as near as its bounds allow."""
    start = np.random.default_rng(stable_seed("start", seed, axis.name)).random()
    return replace(axis, start=float(np.clip(start, axis.low, axis.high)))


def adjust(
    method: MergeMethod,
    start: Mapping[str, float],
    bounds: Mapping[str, Sequence[float]],
    scale: Mapping[str, float],
) -> tuple[Knob, ...]:
    """Returns the method's knobs with the user's start, bounds and scale."""
    for option, given in (("start", start), ("bounds", bounds), ("scale", scale)):
        _refuse_unknown(method, option, given)
    adjusted = []
    for knob in method.knobs:
        low, high = _bounds(knob, bounds.get(knob.name, (knob.low, knob.high)))
        centre = start.get(knob.name, knob.start)
        if not (math.isfinite(centre) and low <= centre <= high):
            raise MergeError(
                f"start of {knob.name}: {centre} lies outside [{low}, {high}]: "
                f"set start.{knob.name} inside"
            )
        step = scale.get(knob.name, knob.scale)
        if not (math.isfinite(step) and step > 0):
            raise MergeError(f"scale of {knob.name}: {step} is no step, it must be positive")
        adjusted.append(Knob(knob.name, low, high, centre, knob.per_expert, step))
    return tuple(adjusted)


def _bounds(knob: Knob, given: Sequence[float]) -> tuple[float, float]:
    if len(given) != 2:
        raise MergeError(f"bounds of {knob.name}: expected [low, high], got {list(given)}")
    low, high = given
    if not knob.low <= low <= high <= knob.high:
        raise MergeError(
            f"bounds of {knob.name}: [{low}, {high}] does not lie in [{knob.low}, {knob.high}]: "
            f"narrow bounds.{knob.name}"
        )
    return low, high


def knob_axes(
    knobs: Sequence[Knob], groups: Sequence[str], experts: Sequence[str], prefix: str = ""
) -> tuple[Real, ...]:
    """Returns an axis for every group, knob and expert (a shared knob has one for all experts)."""
    return tuple(
        Real(f"{prefix}{knob.name}/{group}/{expert}", knob.low, knob.high, knob.start, knob.scale)
        for group in groups
        for knob in knobs
        for expert in (experts if knob.per_expert else ("all",))
    )


def read_knobs(
    genome: Vector,
    knobs: Sequence[Knob],
    searched: frozenset[str],
    groups: Sequence[str],
    experts: Sequence[str],
) -> dict[str, dict[str, Mapping[str, float] | float]]:
    """Returns the coefficients that `knob_axes` laid out in `genome`, in the same order."""
    values = iter(genome.tolist())

    def number(knob: Knob) -> float:
        return next(values) if knob.name in searched else knob.start

    def read(knob: Knob) -> Mapping[str, float] | float:
        return {e: number(knob) for e in experts} if knob.per_expert else number(knob)

    return {group: {knob.name: read(knob) for knob in knobs} for group in groups}


def _refuse_unknown(
    method: MergeMethod, option: str, names: Sequence[str] | Mapping[str, Any]
) -> None:
    known = [knob.name for knob in method.knobs]
    for name in names:
        if name not in known:
            raise MergeError(
                f"{option}: {type(method).__name__} has no knob {name!r}, "
                f"its knobs are {', '.join(known) or 'none'}"
            )
