"""The point nearest to another in a hull or a span, from inner products alone.

All functions take the Gram matrix of the vertices, ``(vertices, vertices)``, their inner products
with the point, ``(vertices,)``, and the point's squared length, float64; vectors themselves are
never seen, so that their dimension does not matter. Vertices may coincide or lie on a line.
"""

from dataclasses import dataclass

import numpy as np

from merging.arrays import Matrix, Vector

_RANK = 1e-14  # squared lengths below this share of the longest vertex's are rounding


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest point and the proof that it is.

    Args:
        weights: of the vertices, ``(vertices,)``; not unique where vertices depend on each other.
        residual: by how much the optimality conditions are missed, in units of squared distance.
            In a hull it is the duality gap: the true nearest point lies within its square root.
    """

    weights: Vector
    squared: float
    residual: float


def nearest_in_hull(gram: Matrix, inner: Vector, squared: float) -> Nearest:
    """Returns ``argmin |sum_i w_i v_i - p|`` over ``w_i >= 0, sum_i w_i = 1``.

    An active-set method on ``f(w) = w G w - 2 w c``, G the Gram matrix and c the inner products
    with p: from face to face of the simplex, each solved exactly, in finitely many steps.

    Source: Wolfe 1976, Finding the nearest point in a polytope, Mathematical Programming 11,
        with inner products in place of vectors.
    """
    weights = np.zeros(len(inner))
    weights[int(np.argmin(np.diag(gram) - 2 * inner))] = 1.0  # the nearest vertex
    for _ in range(20 * (len(inner) + 1)):
        entering = int(np.argmin(gram @ weights - inner))  # argmin_i (G w - c)_i
        if weights[entering] > 0:
            break  # no vertex lies nearer along the way
        better = _best_on_faces(gram, inner, weights, entering)
        if not _cost(gram, inner, better) < _cost(gram, inner, weights):
            break  # what is left to gain is below rounding
        weights = better
    slope = gram @ weights - inner
    gap = max(float(weights @ slope - slope.min()), 0.0)  # w (G w - c) - min_i (G w - c)_i
    return Nearest(weights, _squared(gram, inner, squared, weights), gap)


def _best_on_faces(gram: Matrix, inner: Vector, weights: Vector, entering: int) -> Vector:
    """Returns the best weights of the face with one vertex more, or of a face of that one."""
    face = np.flatnonzero((weights > 0) | (np.arange(len(weights)) == entering))
    while True:
        target = np.zeros(len(weights))  # argmin f over the affine span of the face
        target[face] = _affine_minimum(gram[np.ix_(face, face)], inner[face])
        if (target[face] > 0).all():
            return target
        negative = face[target[face] <= 0]
        steps = weights[negative] / np.maximum(weights[negative] - target[negative], 1e-300)
        weights = weights + float(steps.min()) * (target - weights)  # as far as all w_i >= 0
        weights[negative[steps <= steps.min()]] = 0.0  # leaves the face, exactly
        weights = np.maximum(weights, 0.0)
        weights /= weights.sum()
        face = face[weights[face] > 0]


def nearest_in_affine_span(gram: Matrix, inner: Vector, squared: float) -> Nearest:
    """Returns the same over weights of any sign with ``sum_i w_i = 1``."""
    weights = _affine_minimum(gram, inner)
    slope = gram @ weights - inner
    return Nearest(weights, _squared(gram, inner, squared, weights), float(np.ptp(slope)))


def nearest_in_linear_span(gram: Matrix, inner: Vector, squared: float) -> Nearest:
    """Returns the same over all weights: the affine span of the vertices and the origin."""
    inverse = _inverse(gram, float(np.diag(gram).max()))
    weights: Vector = inverse @ inner  # G^+ c
    weights += inverse @ (inner - gram @ weights)  # refined once
    slope = gram @ weights - inner
    return Nearest(weights, _squared(gram, inner, squared, weights), float(np.abs(slope).max()))


def _affine_minimum(gram: Matrix, inner: Vector) -> Vector:
    """Returns the weights, of any sign and summing to 1, of the point nearest to p."""
    count = len(gram)
    project = np.eye(count) - 1 / count  # P = I - 1 1^T / n, on directions that sum to 0
    inverse = _inverse(project @ gram @ project, float(np.diag(gram).max()))
    weights: Vector = np.full(count, 1 / count)
    for _ in range(2):  # solved, and refined once
        # w <- w + P (P G P)^+ P (c - G w)
        weights += project @ (inverse @ (project @ (inner - gram @ weights)))
    return weights


def _inverse(gram: Matrix, longest: float) -> Matrix:
    """Returns the pseudo-inverse without directions that are rounding beside `longest`."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > _RANK * len(gram) * longest
    inverse: Matrix = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    return inverse


def _cost(gram: Matrix, inner: Vector, weights: Vector) -> float:
    return float(weights @ (gram @ weights - 2 * inner))  # w G w - 2 w c


def _squared(gram: Matrix, inner: Vector, squared: float, weights: Vector) -> float:
    return max(_cost(gram, inner, weights) + squared, 0.0)  # |sum_i w_i v_i - p|^2
