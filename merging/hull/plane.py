"""Base, experts and other models in the plane that fits them best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from merging.hull.gram import Gram

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Plane:
    """Models in the plane that fits them best.

    Args:
        share: of the fitted models' variance that the plane shows, 0 to 1.
        base: its coordinates, in units of the experts' mean distance from the base.
        off: name of a point to its distance from the plane, in the same units.
    """

    share: float
    base: Point
    experts: Mapping[str, Point]
    points: Mapping[str, Point]
    off: Mapping[str, float]


def best_plane(gram: Gram, fitted: Sequence[str] | None = None) -> Plane:
    """Returns base, experts and points projected on the plane of best fit.

    The plane is the first two principal components of base, experts and the points in `fitted`
    (None: all); the others are projected on it.
    """
    experts, names = len(gram.experts), gram.points
    kept = names if fitted is None else tuple(fitted)
    rows = [*range(experts), *(gram.row(name) for name in kept)]
    rows.append(len(gram.matrix))  # the base: a task vector of length 0
    unit = gram.expert_scale or 1.0
    full = np.pad(gram.matrix, (0, 1)) / unit**2
    mean = full[:, rows].mean(1)
    centred = full - mean[:, None] - mean[None, :] + mean[rows].mean()  # <v_i - m, v_j - m>
    values, vectors = np.linalg.eigh(centred[np.ix_(rows, rows)])
    values = np.maximum(values, 0.0)
    coordinates = np.zeros((len(full), 2))
    for axis in range(min(2, len(rows))):
        value = values[-1 - axis]
        if value > 1e-12 * values[-1]:
            along = centred[:, rows] @ vectors[:, -1 - axis] / math.sqrt(value)  # C u / sqrt(l)
            farthest = np.argmax(np.abs(along[:experts]))
            coordinates[:, axis] = along * (np.sign(along[farthest]) or 1.0)
    off = np.sqrt(np.maximum(np.diag(centred) - (coordinates**2).sum(1), 0.0))
    total = float(values.sum())
    pairs = [(float(x), float(y)) for x, y in coordinates]
    return Plane(
        share=float(values[-2:].sum()) / total if total > 0 else 1.0,
        base=pairs[-1],
        experts=dict(zip(gram.experts, pairs, strict=False)),
        points=dict(zip(names, pairs[experts:], strict=False)),
        off=dict(zip(names, off[experts:].tolist(), strict=False)),
    )


def outline(points: Sequence[Point]) -> list[Point]:
    """Returns the corners of the convex hull of points in a plane, counter-clockwise.

    Source: Andrew 1979, Another efficient algorithm for convex hulls in two dimensions.
    """
    ordered = sorted(set(points))
    if len(ordered) < 3:
        return ordered
    return [*_chain(ordered)[:-1], *_chain(ordered[::-1])[:-1]]


def _chain(points: Sequence[Point]) -> list[Point]:
    chain: list[Point] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
