"""Singular value decompositions that leave out what is only rounding."""

import torch
from torch import Tensor

from merging.rules.threads import one_thread
from merging.seeding import generator

_FIRST_SKETCH = 64
"""Columns of the first sketch of a matrix; each further one has twice as many."""


def low_rank_svd(matrix: Tensor, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `thin_svd` does, at the cost of the rank where that is small.

    The matrix times random columns spans its whole range, to rounding, as soon as there are more
    columns than its rank: the decomposition of what lies in that span is then that of the matrix.
    A matrix whose rank is no small part of its size is decomposed as it is.

    Args:
        matrix: ``(m, n)``, at least one entry.
        most: keep only so many leading triplets.

    Source: Halko et al. 2011, Finding structure with randomness, algorithm 4.1, arXiv 0909.4061.
    """
    columns = _FIRST_SKETCH
    while 4 * columns <= min(matrix.shape):
        probe = torch.randn((matrix.shape[1], columns), generator=generator("sketch", columns))
        with one_thread():
            span, _ = torch.linalg.qr(matrix @ probe.to(matrix))  # Q R = A Omega, (m, columns)
            projected = span.T @ matrix  # B = Q^T A, of the same S and V; U = Q U_B
        left, values, right = thin_svd(projected)
        if len(values) < columns:
            return (span @ left)[:, :most], values[:most], right[:most]
        columns *= 2
    return thin_svd(matrix, most)


def thin_svd(matrix: Tensor, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U ``(m, r)``, S ``(r,)`` falling, V ``(r, n)`` with ``U S V = matrix``.

    r is the numerical rank: singular values of at most ``max(m, n) eps S[0]`` are rounding, their
    vectors differ between machines, and they are left out.

    Args:
        matrix: ``(m, n)``, at least one entry.
        most: keep only so many leading triplets.
    """
    with one_thread():
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    floor = values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps
    rank = int((values > floor).sum())
    rank = rank if most is None else min(rank, most)
    return left[:, :rank], values[:rank], right[:rank]


def polar_factor(matrix: Tensor) -> Tensor:
    """Returns the matrix nearest to `matrix` that has orthonormal columns (or rows, if wide).

    That is ``P Q`` for ``P S Q = matrix``, the solution of the orthogonal Procrustes problem. On
    the null space of a matrix without full rank it is 0, where any choice would be arbitrary.

    Args:
        matrix: ``(m, n)``, not zero.
    """
    left, _, right = thin_svd(matrix)
    return left @ right  # P Q
