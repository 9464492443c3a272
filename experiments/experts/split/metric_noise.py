"""Noise of density ``~ exp(-eta |z|)`` on vectors, and the distance that it is measured by.

Noise in floating point promises what the formula says of exact arithmetic, not what an attack on
the last bits finds.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from search.privacy.private_noise import Bits

_NUMBERS = 2**22  # at once: 32 MiB of float64


def sample(shape: tuple[int, int], eta: Tensor | float, bits: Bits) -> Tensor:
    """Returns ``(n, d)`` float64 on the CPU: a row's density is ``~ exp(-eta |z|)``.

    The direction is uniform on the sphere, the length Gamma of shape d and scale 1 / eta: its mean
    is d / eta, and the standard deviation of a coordinate ``sqrt(d + 1) / eta``.

    Args:
        shape: n and d.
        eta: ``(n,)`` or one for all, per Euclidean distance 1.
        bits: read in order of the rows; equal bits give equal noise.

    Raises:
        ValueError: an eta is not a finite number above 0.

    Source: Wu, Li, Kumar, Chaudhuri, Jha, Naughton 2017, Bolt-on Differential Privacy, arXiv
        1606.04722, appendix E; of words: Feyisetan, Balle, Drake, Diethe 2020, arXiv 1910.08902.
    """
    rows, width = shape
    etas = torch.as_tensor(eta, dtype=torch.float64).expand(rows)
    if not bool((etas.isfinite() & (etas > 0)).all()):
        raise ValueError("eta must be a finite number above 0 for every token")
    block = max(1, _NUMBERS // width)
    starts = range(0, rows, block)
    parts = [_unit_noise(min(block, rows - start), width, bits) for start in starts]
    empty = torch.empty(0, width, dtype=torch.float64)
    return torch.cat([empty, *parts]) / etas[:, None]


def _unit_noise(rows: int, width: int, bits: Bits) -> Tensor:
    normals = _normals(rows * width, bits).view(rows, width)
    directions = normals / normals.norm(dim=1, keepdim=True)
    # Gamma of shape d is the sum of d exponentials
    lengths = -_uniforms(rows * width, bits).log().view(rows, width).sum(dim=1)
    noise: Tensor = directions * lengths[:, None]
    return noise


def _normals(count: int, bits: Bits) -> Tensor:
    """Returns ``(count,)`` standard normals; Box & Muller 1958."""
    half = -(-count // 2)
    lengths = (-2 * _uniforms(half, bits).log()).sqrt()  # sqrt(-2 ln u)
    angles = 2 * math.pi * _uniforms(half, bits)
    return torch.cat([lengths * angles.cos(), lengths * angles.sin()])[:count]


def _uniforms(count: int, bits: Bits) -> Tensor:
    """Returns ``(count,)`` float64 of (0, 1), the ends excluded; 52 bits, so that 1/2 fits in."""
    return (torch.from_numpy(bits.below(2**52, count)).double() + 0.5) / 2**52


def eta_of(ratio: float, width: int, unit: float) -> float:
    """Returns the eta whose mean noise length is `ratio` units: ``d / eta = ratio unit``."""
    return width / (ratio * unit)


def mean_neighbour_distance(vectors: Tensor, tokens: Tensor | None = None) -> float:
    """Returns the mean over vectors of the Euclidean distance to the nearest of another token.

    Args:
        vectors: ``(n, d)``: an embedding table, or states of a public text.
        tokens: ``(n,)``, whose vector each is; None: each of a token of its own.

    Raises:
        ValueError: there are no two tokens, or all of one place.
    """
    own = torch.arange(len(vectors)) if tokens is None else tokens.cpu()
    if bool((own == own[:1]).all()):
        raise ValueError("a distance between neighbours needs the vectors of at least two tokens")
    total = 0.0
    for start, squares in _squares(vectors, vectors):
        stop = start + len(squares)
        same = own[start:stop, None] == own[None, :]
        near = squares.masked_fill(same.to(squares.device), math.inf).argmin(dim=1)
        # Exactly: |a|^2 - 2ab + |b|^2 loses the digits of a small difference.
        gaps = vectors[start:stop].double() - vectors[near].double()
        total += float(gaps.norm(dim=1).sum())
    if total == 0:
        raise ValueError("all vectors lie in one place: there is no distance between neighbours")
    return total / len(vectors)


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """Returns ``(n,)`` int64: the row of ``(V, d)`` `table` that is nearest to each vector."""
    parts = [squares.argmin(dim=1) for _, squares in _squares(vectors, table)]
    return torch.cat([torch.empty(0, dtype=torch.int64, device=table.device), *parts])


def _squares(vectors: Tensor, table: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields ``|b|^2 - 2 a b``: squared distances but for a constant of each row, in blocks."""
    table = table.float()
    lengths = table.square().sum(dim=1)
    block = max(1, _NUMBERS // len(table))
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block].to(table)
        yield start, torch.addmm(lengths, rows, table.T, alpha=-2)
