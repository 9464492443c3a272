"""Layer-stack space: which layer of which model comes next, and how much it contributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.method import MergeError
from merging.plan import Plan
from merging.spaces.axes import Axis, Choice, Real, check
from merging.spaces.displaced import DisplacedSpace
from merging.spaces.vectors import VectorGenomes, VectorSpace
from merging.stacks.layer_stack import BASE, MERGED, LayerStackPlan, StackedLayer
from merging.stacks.layers import LayerMap

SKIP = "skip"
"""The choice of a source that leaves the place empty."""


@dataclass(frozen=True)
class _Columns:
    """One place: its columns in a genome, None: no choice; and the layers that may stand there."""

    layer: int | None
    source: int | None
    scale: int | None
    layers: tuple[int, ...]


class LayerStackSpace(VectorGenomes):
    """Genome: for every place of the stack a layer, a source and a scale; then what is outside.

    The start is the model of the first source (the merge, or the base, or the first expert), its
    layers in order. In a deeper stack they are spread evenly and the places between are skipped,
    or repeat the layer before where nothing can be skipped; in a shallower one some are missing.

    Args:
        depth: number of places, the layers of the model; None: as many as the base has.
        coefficients: builds a space over the same pool whose merge is one more source, from which
            the tensors outside the layers come too; its axes are searched as well. None: they
            come from one of the other sources, which is chosen.
        reach: how many layers the layer of a place may lie away from the one that it starts
            with; None: it may be any layer.
        scaling: whether what a layer adds to the residual stream is scaled.
        skip: whether a place may be left empty.
        step: typical step of a search of the scales.
        initial: a plan to start from: it moves what `coefficients` searches, or is a source.

    Raises:
        MergeError: the model's layers cannot be rearranged, scaled or skipped; there is no source
            or nothing to search; a bound, step, reach or depth makes no sense.

    Source: Akiba et al. 2024, arXiv 2403.13187, section 3.2; see `LayerStackPlan` for how it
        deviates.
    """

    def __init__(
        self,
        pool: ExpertPool,
        *,
        depth: int | None = None,
        experts: bool = True,
        base: bool = True,
        coefficients: Callable[..., VectorSpace] | None = None,
        reach: int | None = None,
        scaling: bool = True,
        skip: bool = True,
        bounds: Sequence[float] = (0.0, 2.0),
        step: float = 0.2,
        initial: Plan | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pool, self.dtype = pool, dtype
        self._map = LayerMap.of(pool.base)
        self.depth = self._map.count if depth is None else depth
        self._map.check_depth(self.depth)
        if scaling or skip:
            self._map.check_scaling()
        if reach is not None and reach < 0:
            raise MergeError(f"reach {reach}: it must be a number of layers, at least 0")
        self._merge = _merge_space(pool, coefficients, initial)
        self._initial = initial
        own = (*((BASE,) if base else ()), *(pool.expert_names if experts else ()))
        merged = (MERGED,) if self._merge is not None or initial is not None else ()
        self._sources = (*merged, *own)
        if not self._sources:
            raise MergeError(
                "the layer stack has no source: set experts or base to true, or give "
                "it coefficients"
            )
        self._skip = len(self._sources) if skip else None
        self._scale = _scale_axis(bounds, step) if scaling else None
        self._lay_out(reach)

    def _lay_out(self, reach: int | None) -> None:
        """Settles axes and where each place's numbers lie."""
        axes: list[Axis] = []
        starts = [i * self._map.count // self.depth for i in range(self.depth)]
        self._columns = tuple(
            self._place_axes(axes, i, start, i > 0 and start == starts[i - 1], reach)
            for i, start in enumerate(starts)
        )
        outer = None if self._merge is not None else Choice("outer", self._sources)
        self._outer = _add(axes, outer)
        self._inner = slice(len(axes), None)
        if self._merge is not None:
            axes.extend(replace(a, name=f"{MERGED}/{a.name}") for a in self._merge.axes)
        if not axes:
            raise MergeError("the layer stack leaves nothing to search: allow more sources")
        self.axes = tuple(axes)

    def _place_axes(
        self, axes: list[Axis], i: int, first: int, repeated: bool, reach: int | None
    ) -> _Columns:
        """Adds the axes of place `i`, which starts with layer `first`."""
        kinds, far = self._map.kinds, self._map.count if reach is None else reach
        near = range(max(0, first - far), min(self._map.count, first + far + 1))
        layers = tuple(n for n in near if kinds[n] == kinds[first])
        options = self._sources if self._skip is None else (*self._sources, SKIP)
        scale = self._scale
        if repeated and self._skip is None and scale is not None and scale.low <= 0:
            scale = replace(scale, start=0.0)
        return _Columns(
            layer=_add(axes, Choice(f"layer/{i}", tuple(map(str, layers)), layers.index(first))),
            source=_add(axes, Choice(f"source/{i}", options, (self._skip or 0) * repeated)),
            scale=_add(axes, None if scale is None else replace(scale, name=f"scale/{i}")),
            layers=layers,
        )

    def plan(self, genome: Vector) -> LayerStackPlan:
        """Returns the stack of a genome; raises ValueError where a number lies off its axis."""
        check(self.axes, genome)
        outer = self._sources[_index(genome, self._outer)]
        merged = self._initial
        if self._merge is not None:
            merged, outer = self._merge.plan(genome[self._inner]), MERGED
        places = tuple(self._place(genome, columns) for columns in self._columns)
        return LayerStackPlan(places, outer, merged)

    def canonical(self, genome: Vector) -> Vector:
        """Returns `genome` with what a skipped place chooses at 0, and the merge's own.

        A place is skipped by its choice, or by a scale of 0.
        """
        fixed = genome.copy()
        for columns in self._columns:
            if not self._is_skipped(genome, columns):
                continue
            for column, value in (
                (columns.layer, 0.0),
                (columns.source, float(self._skip or 0)),
                (columns.scale, self._neutral),
            ):
                if column is not None:
                    fixed[column] = value
        if self._merge is not None:
            fixed[self._inner] = self._merge.canonical(genome[self._inner])
        return fixed

    @property
    def _neutral(self) -> float:
        """What the scale of a skipped place is set to: 0, where that lies within the bounds."""
        if self._scale is None:
            return 1.0
        return 0.0 if self._scale.low <= 0 <= self._scale.high else self._scale.start

    def _is_skipped(self, genome: Vector, columns: _Columns) -> bool:
        if columns.scale is not None and genome[columns.scale] == 0:
            return True
        return columns.source is not None and genome[columns.source] == self._skip

    def _place(self, genome: Vector, columns: _Columns) -> StackedLayer:
        if self._is_skipped(genome, columns):
            return StackedLayer(columns.layers[0], BASE, 0.0)
        return StackedLayer(
            columns.layers[_index(genome, columns.layer)],
            self._sources[_index(genome, columns.source)],
            1.0 if columns.scale is None else float(genome[columns.scale]),
        )


def _add(axes: list[Axis], axis: Axis | None) -> int | None:
    """Appends an axis and returns its column; None: there is none, or nothing to choose."""
    if axis is None or (isinstance(axis, Choice) and len(axis.options) < 2):
        return None
    axes.append(axis)
    return len(axes) - 1


def _index(genome: Vector, column: int | None) -> int:
    return 0 if column is None else int(genome[column])


def _merge_space(
    pool: ExpertPool, coefficients: Callable[..., VectorSpace] | None, initial: Plan | None
) -> VectorSpace | None:
    if coefficients is None:
        return None
    space = coefficients(pool, dtype=torch.float32)
    return space if initial is None else DisplacedSpace(space, initial, dtype=torch.float32)


def _scale_axis(bounds: Sequence[float], step: float) -> Real:
    if len(bounds) != 2 or not (bounds[0] <= 1 <= bounds[1] and np.isfinite(bounds).all()):
        raise MergeError(
            f"bounds of the scale: expected [low, high] around 1, got {list(bounds)}: a layer as "
            "it is has scale 1"
        )
    if not (math.isfinite(step) and step > 0):
        raise MergeError(f"step of the scale: {step} is no step, it must be positive")
    return Real("scale", float(bounds[0]), float(bounds[1]), 1.0, step)
