"""Which entries of a delta are kept: by magnitude, by chance, or by both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from merging.rules.cache import ExpertTensor, ExpertTensors, Threshold, cut_of
from merging.rules.compiled_rule import ALL, Selection, SelectionKind

_FINEST = 2.0**-24
"""Draws are multiples of it: what is kept with a smaller chance is kept with this one."""

_ZERO = np.float32(0)

_pass_within = torch.ops.aten.hardtanh_backward.grad_input
"""The derivative of hardtanh: compares and selects in one pass, where torch.where is slow."""


class Sparsifier(Protocol):
    """What is kept of a delta, applied to one piece of it after the other."""

    @property
    def scale(self) -> float:
        """What the kept entries are still to be multiplied by."""
        ...

    def __call__(self, start: int, delta: Tensor, spares: list[Tensor]) -> None:
        """Zeroes in place what is not kept of the entries from `start` on.

        Args:
            start: place of the first entry in the parameter.
            delta: ``(entries,)``.
            spares: two tensors like it to compute in.
        """
        ...

    def coded(self) -> Selection:
        """Returns the same in numbers."""
        ...


def kept(density: float, size: int) -> int:
    """Returns how many of `size` entries a density keeps.

    ``round(density * size)`` (halves to the even number), at least 1 while both are positive.

    Example:
        >>> kept(0.5, 4), kept(0.1, 3), kept(0.0, 3), kept(1.0, 0)
        (2, 1, 0, 0)
    """
    return max(1, round(density * size)) if density > 0 and size else 0


def trim(row: ExpertTensor, density: float) -> Sparsifier:
    """Returns what keeps the ``kept(density, n)`` largest magnitudes."""
    return _Largest.of(row, kept(density, row.stored.numel()))


def band(row: ExpertTensor, density: float, gamma: float) -> Sparsifier:
    """Returns what keeps neither the largest magnitudes nor the smallest.

    The ``round(gamma * n)`` largest go first, fewer where the density leaves no room for that;
    of the rest the ``kept(density, n)`` largest stay.
    """
    size = row.stored.numel()
    count = kept(density, size)
    outliers = min(round(gamma * size), size - count)
    return _Band(_Largest.of(row, outliers + count), _Largest.of(row, outliers))


def drop(row: ExpertTensor, density: float, seed: int, *, rescale: bool) -> Sparsifier:
    """Returns what keeps each entry with probability `density`.

    Equal noise gives nested masks: what a density keeps, a larger one keeps too. Chance may empty
    a small tensor; keeping an entry by force would bias the mean.

    Args:
        row: the expert; its identity and the tensor's name are part of the noise.
        density: in [0, 1].
        seed: of the noise, which is not read where the density is 0 or 1.
        rescale: divide what is kept by `density`, so that the mean over noise is the delta.
    """
    if not 0 < density < 1:
        return _Largest.all_or_none(all_of=density >= 1)
    return _Drawn(row.draws(seed), density, 1 / max(density, _FINEST) if rescale else 1.0)


def magprune(
    row: ExpertTensor, density: float, epsilon: float, seed: int, *, rescale: bool
) -> Sparsifier:
    """Returns what keeps each entry with a probability that rises with its magnitude.

    ``p = density - e + 2 e rank / (n - 1)``, rank from 0 (smallest magnitude) within each row of
    n entries; ``e = min(epsilon, density, 1 - density)``, so that every p is a probability and
    their mean is `density`. A row is what one index of the first dimension holds; a tensor of
    less than two dimensions is one row. Equal magnitudes rank in their order in the row.

    Args:
        row: the expert.
        density: mean probability to be kept, in [0, 1].
        epsilon: half-width of the window of probabilities, in [0, 1].
        seed: as in `drop`; masks are nested in the density here too.
        rescale: divide what is kept by its own p.

    Source: Deep et al. 2024, DELLA-Merging (MAGPRUNE), arXiv:2406.11617. Their
    epsilon is the whole window; here it is half of it, as in mergekit.
    """
    if not 0 < density < 1 or not row.stored.numel():
        return _Largest.all_or_none(all_of=density >= 1)
    width = min(epsilon, density, 1 - density)
    steps = row.row_length - 1
    lowest = density - width if steps else density
    return _Pruned(row.draws(seed), row.ranks(), lowest, 2 * width / max(steps, 1), rescale)


@dataclass(frozen=True)
class _Largest:
    """Keeps what lies above a threshold: up to the cut's position what equals it too."""

    cut: Threshold | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, row: ExpertTensor, count: int) -> _Largest:
        if 0 < count < row.stored.numel():
            return cls(row.cut(count))
        return cls.all_or_none(all_of=count > 0)

    @classmethod
    def all_or_none(cls, *, all_of: bool) -> _Largest:
        return cls(None if all_of else Threshold(math.inf, -1))

    def __call__(self, start: int, delta: Tensor, spares: list[Tensor]) -> None:
        self.apply(start, delta, delta)

    def apply(self, start: int, delta: Tensor, out: Tensor) -> None:
        """Writes what is kept of `delta` into `out`, which may be the same."""
        if self.cut is None:
            if out is not delta:
                out.copy_(delta)
            return
        threshold = self.cut.threshold
        until = min(max(self.cut.last + 1 - start, 0), len(delta))
        if until:
            below = _below(threshold, delta.dtype)
            torch.hardshrink(delta[:until], below, out=out[:until])
        if until < len(delta):
            torch.hardshrink(delta[until:], threshold, out=out[until:])

    def coded(self) -> Selection:
        if self.cut is None:
            return ALL
        return Selection(SelectionKind.LARGEST, self.bounds(), (self.cut.last,))

    def bounds(self) -> tuple[float, float]:
        """Returns what the cut's threshold and the number below it are in float32."""
        threshold = -1.0 if self.cut is None else self.cut.threshold  # no magnitude is less
        return threshold, _below(threshold, torch.float32)


@dataclass(frozen=True)
class _Band:
    """Keeps what one selection keeps and another, within it, does not."""

    outer: _Largest
    inner: _Largest
    scale: float = 1.0

    def __call__(self, start: int, delta: Tensor, spares: list[Tensor]) -> None:
        self.inner.apply(start, delta, spares[0])
        self.outer(start, delta, spares)
        delta.sub_(spares[0])

    def coded(self) -> Selection:
        cuts = self.outer, self.inner
        last = tuple(-1 if part.cut is None else part.cut.last for part in cuts)
        return Selection(SelectionKind.BAND, self.outer.bounds() + self.inner.bounds(), last)


@dataclass(frozen=True, eq=False)
class Masked:
    """Keeps the entries where `mask`, ``(entries of the parameter,)`` of 0 and 1, is 1."""

    mask: Tensor
    scale: float = 1.0

    @classmethod
    def largest(cls, rows: ExpertTensors, kind: str, values: Tensor, count: int) -> Masked:
        """Returns what keeps the places of the `count` largest values, the earlier of equals.

        Args:
            rows: what the values depend on.
            kind: what they are, for keeping their order.
            values: ``(entries,)``, at least 0.
            count: at most the number of entries.
        """
        if not 0 < count < len(values):
            return cls(torch.full_like(values, float(count > 0)))
        cut = cut_of(rows, kind, count, lambda: values, lambda place: values[place].item())
        mask = torch.gt(values, cut.threshold, out=torch.empty_like(values))
        until = slice(0, cut.last + 1)
        torch.ge(values[until], cut.threshold, out=mask[until])
        return cls(mask)

    def __call__(self, start: int, delta: Tensor, spares: list[Tensor]) -> None:
        """Keeps them."""
        delta.mul_(self.mask[start : start + len(delta)])

    def coded(self) -> Selection:
        """Returns the mask."""
        return Selection(SelectionKind.MASK, tensors=(self.mask,))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Keeps entries whose draw lies below the density."""

    draws: Tensor
    density: float
    scale: float

    def __call__(self, start: int, delta: Tensor, spares: list[Tensor]) -> None:
        draws = self.draws[start : start + len(delta)]
        _pass_within(delta, draws, -1.0, self.density, grad_input=delta)

    def coded(self) -> Selection:
        return Selection(SelectionKind.DRAWN, (self.density,), tensors=(self.draws,))


@dataclass(frozen=True, eq=False)
class _Pruned:
    """Keeps entries whose draw lies below a probability of their own."""

    draws: Tensor
    ranks: Tensor
    lowest: float
    step: float
    rescale: bool
    scale: float = 1.0

    def __call__(self, start: int, delta: Tensor, spares: list[Tensor]) -> None:
        chance, chosen, *_ = spares
        here = slice(start, start + len(delta))
        chance.copy_(self.ranks[here]).mul_(self.step).add_(self.lowest)
        delta.mul_(torch.lt(self.draws[here], chance, out=chosen))
        if self.rescale:
            delta.div_(chance if self.lowest >= _FINEST else chance.clamp_(min=_FINEST))

    def coded(self) -> Selection:
        numbers = self.step, self.lowest, float(self.rescale)
        return Selection(SelectionKind.PRUNED, numbers, tensors=(self.draws, self.ranks))


def _below(threshold: float, dtype: torch.dtype) -> float:
    """Returns the next smaller number of `dtype`, not below 0."""
    if dtype == torch.float64:
        return math.nextafter(threshold, 0.0)
    return float(np.nextafter(np.float32(threshold), _ZERO))
