"""Where a model lies as seen from the experts: its distances to their hull and to their spans."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from merging.hull.gram import Gram
from merging.hull.simplex_qp import (
    Nearest,
    nearest_in_affine_span,
    nearest_in_hull,
    nearest_in_linear_span,
)

_TIMES_FLOOR = 4.0


@dataclass(frozen=True)
class Span:
    """The nearest point of a hull or a span.

    Args:
        coefficients: of the experts, that make the nearest point; the base has what is left to 1.
        residual: square root of the miss of the optimality conditions; see `Nearest`.
        outside: the distance is more than rounding explains.
    """

    distance: float
    coefficients: Mapping[str, float]
    residual: float
    outside: bool


@dataclass(frozen=True)
class Position:
    """Where a point lies; all are distances or nearest points.

    Args:
        expert_scale: the experts' mean distance from the base: a unit to read distances by.
        floor: distance from the hull that rounding alone may cause.
        affine_span: combinations of the experts with coefficients that sum to 1.
        linear_span: all combinations of task vectors: the affine span of experts and base.
    """

    name: str
    from_base: float
    expert_scale: float
    floor: float
    experts: Mapping[str, float]
    hull: Span
    hull_with_base: Span
    affine_span: Span
    linear_span: Span


def position(gram: Gram, point: str) -> Position:
    """Returns the distances of `point`, exact for any number and arrangement of experts.

    ``outside`` is claimed for distances above 4 times the sum of two roundings: that of the
    point's own weights (`measure`), and that of the float64 sums, ``sqrt(eps) (1 + sum_i |c_i|)``
    of the largest task vector, c the coefficients of the nearest point, whose sizes sum to 1 in a
    hull. The length of many independent rounding errors hardly varies around its expectation; the
    factor leaves room for methods that round more often than once per expert.
    """
    experts, row = len(gram.experts), gram.row(point)
    inside = gram.matrix[:experts, :experts]
    inner, squared = gram.matrix[row, :experts], float(gram.matrix[row, row])
    sums = math.sqrt(np.finfo(np.float64).eps * max(squared, float(np.diag(inside).max())))
    rounding = float(gram.rounding[row - experts])
    with_base = nearest_in_hull(np.pad(inside, (0, 1)), np.pad(inner, (0, 1)), squared)
    to_experts = np.sqrt(np.maximum(np.diag(inside) - 2 * inner + squared, 0.0))

    def span(nearest: Nearest) -> Span:
        distance = math.sqrt(nearest.squared)
        floor = _TIMES_FLOOR * (rounding + sums * (1 + float(np.abs(nearest.weights).sum())))
        weights = dict(zip(gram.experts, nearest.weights[:experts].tolist(), strict=True))
        return Span(distance, weights, math.sqrt(nearest.residual), distance > floor)

    return Position(
        name=point,
        from_base=math.sqrt(squared),
        expert_scale=gram.expert_scale,
        floor=_TIMES_FLOOR * (rounding + 2 * sums),
        experts=dict(zip(gram.experts, to_experts.tolist(), strict=True)),
        hull=span(nearest_in_hull(inside, inner, squared)),
        hull_with_base=span(with_base),
        affine_span=span(nearest_in_affine_span(inside, inner, squared)),
        linear_span=span(nearest_in_linear_span(inside, inner, squared)),
    )
