"""Singular value decompositions that leave out what is only rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def thin_svd(matrix: Tensor, most: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U ``(m, r)``, S ``(r,)`` falling, V ``(r, n)`` with ``U S V = matrix``.

    r is the numerical rank: singular values of at most ``max(m, n) eps S[0]`` are rounding, their
    vectors differ between machines, and they are left out.

    Args:
        matrix: ``(m, n)``, at least one entry.
        most: keep only so many leading triplets.
    """
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
    return left @ right
