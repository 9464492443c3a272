"""Singular value decompositions that leave out what is only rounding.

All is computed in float64 and rounded once. In float32 a decomposition is off by 20 units in the
last place of the largest singular value, so that the vectors of a value of 1e-5 of it would be
off by a fifth; directions like that are true ones where all rows moved along one of them.
"""

from typing import TypeAlias

import torch
from torch import Tensor

from merging.rules.float64 import in_float64
from merging.rules.threads import one_thread
from merging.seeding import generator

_FIRST_SKETCH = 64
"""Columns of the first sketch of a matrix; each further one has twice as many."""

_Triplets: TypeAlias = tuple[Tensor, Tensor, Tensor]


@one_thread()
def low_rank_svd(matrix: Tensor, most: int | None = None) -> _Triplets:
    """Returns what `thin_svd` does, at the cost of the rank where that is small.

    The matrix times random columns spans its whole range, to rounding, as soon as there are more
    columns than its rank: the decomposition of what lies in that span is then that of the matrix.
    A matrix whose rank is no small part of its size is decomposed as it is.

    Args:
        matrix: ``(m, n)``, at least one entry.
        most: keep only so many leading triplets.

    Source: Halko et al. 2011, Finding structure with randomness, algorithm 4.1, arXiv 0909.4061.
    """
    exact, columns = in_float64(matrix), _FIRST_SKETCH
    while 4 * columns <= min(matrix.shape):
        probe = torch.randn((matrix.shape[1], columns), generator=generator("sketch", columns))
        span, _ = torch.linalg.qr(exact @ probe.to(exact))  # Q R = A Omega, (m, columns)
        # B = Q^T A, of the same S and V; U = Q U_B
        left, values, right = _above_rounding(span.T @ exact, matrix.dtype)
        if len(values) < columns:
            return _leading((span @ left, values, right), most, matrix)
        columns *= 2
    return _leading(_above_rounding(exact, matrix.dtype), most, matrix)


@one_thread()
def thin_svd(matrix: Tensor, most: int | None = None) -> _Triplets:
    """Returns U ``(m, r)``, S ``(r,)`` falling, V ``(r, n)`` with ``U S V = matrix``.

    r is the numerical rank: singular values that rounding of the matrix or of the decomposition
    can make up are left out, for their vectors differ between machines.

    Args:
        matrix: ``(m, n)``, at least one entry, float32 or float64, as the result.
        most: keep only so many leading triplets.
    """
    return _leading(_above_rounding(in_float64(matrix), matrix.dtype), most, matrix)


def _above_rounding(exact: Tensor, stored: torch.dtype) -> _Triplets:
    """Returns the triplets above ``(10 eps(stored) + 100 eps(float64)) S[0]``, in float64.

    Independent rounding of the entries makes up singular values of at most ``eps(stored) S[0]``;
    ten times that leaves room for sums of a few that cancel. LAPACK's own error was at most
    ``30 eps(float64) S[0]`` on matrices of up to 152,000 rows.
    """
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    share = 10 * torch.finfo(stored).eps + 100 * torch.finfo(torch.float64).eps
    rank = int((values > share * values[0]).sum())
    return left[:, :rank], values[:rank], right[:rank]


def _leading(triplets: _Triplets, most: int | None, like: Tensor) -> _Triplets:
    """Returns at most so many triplets, in dtype and device of `like`."""
    left, values, right = triplets
    return left[:, :most].to(like), values[:most].to(like), right[:most].to(like)


@one_thread()
def polar_factor(matrix: Tensor) -> Tensor:
    """Returns the matrix nearest to `matrix` that has orthonormal columns (or rows, if wide).

    That is ``P Q`` for ``P S Q = matrix``, the solution of the orthogonal Procrustes problem. On
    the null space of a matrix without full rank it is 0, where any choice would be arbitrary.

    Args:
        matrix: ``(m, n)``, not zero.
    """
    left, _, right = _above_rounding(in_float64(matrix), matrix.dtype)
    return (left @ right).to(matrix)  # P Q
