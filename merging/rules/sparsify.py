"""Which entries of a delta are kept: by magnitude, by chance, or by both.

Entries of equal magnitude are treated alike, wherever they stand. Experts in bfloat16 that moved
by a few steps of its grid have a few magnitudes only, each of them on many entries: whatever cut
one of them would choose by position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from merging.method import MergeError
from merging.rules.blocks import Scratch
from merging.rules.cache import ExpertTensor, ExpertTensors, kth_magnitude
from merging.rules.compiled_rule import ENTRY_TYPES, Packable, PackedSelection, SelectionKind

BUFFERS = "probability", "mask"
"""What a sparsifier computes in, and any rule's scratch holds for it."""

_FINEST = 2.0**-24
"""Draws are multiples of it: what is kept with a smaller chance is kept with this one."""

_pass_within = torch.ops.aten.hardtanh_backward.grad_input
"""The derivative of hardtanh: compares and selects in one pass, where torch.where is slow."""


class Sparsifier(Packable, Protocol):
    """Which entries of a delta are kept, applied to one block of it after the other."""

    @property
    def scale(self) -> float:
        """What the kept entries are still to be multiplied by."""
        ...

    def __call__(self, start: int, delta: Tensor, scratch: Scratch) -> None:
        """Zeroes in place what is not kept of the entries from `start` on.

        Args:
            start: place of the first entry in the parameter.
            delta: ``(entries,)``.
            scratch: holds `BUFFERS`, like `delta`.
        """
        ...


def kept_count(density: float, size: int) -> int:
    """Returns how many of `size` entries a density keeps.

    ``round(density * size)`` (halves to the even number), at least 1 while both are positive.

    Example:
        >>> kept_count(0.5, 4), kept_count(0.1, 3), kept_count(0.0, 3), kept_count(1.0, 0)
        (2, 1, 0, 0)
    """
    return max(1, round(density * size)) if density > 0 and size else 0


def trim(row: ExpertTensor, density: float) -> Sparsifier:
    """Returns the sparsifier that keeps the ``kept_count(density, n)`` largest magnitudes.

    What equals the smallest of them is kept as well.
    """
    return Largest.of(row, kept_count(density, row.stored.numel()))


def trim_model(row: ExpertTensor, density: float) -> Sparsifier:
    """Returns the sparsifier that keeps what is of the largest magnitudes of the whole model.

    That is `trim` of all the expert's merged tensors as one vector. Where groups of tensors have
    densities of their own, each is cut where its density would cut the whole model.

    Raises:
        MergeError: the tensor stands alone, without the model that it is of.
    """
    if row.whole is None:
        raise MergeError(
            f"tensor {row.tensor!r} cannot be trimmed over the whole model, of which nothing "
            "else is given: set trim=tensor"
        )
    count = kept_count(density, row.whole.entries)
    if not 0 < count < row.whole.entries:
        return KEEP_ALL if count > 0 else KEEP_NONE
    return Largest(row.whole.threshold(count))


def band(row: ExpertTensor, density: float, gamma: float) -> Sparsifier:
    """Returns the sparsifier that drops both the largest magnitudes and the smallest.

    The ``round(gamma * n)`` largest go first, fewer where the density leaves no room for that;
    of the rest the ``kept_count(density, n)`` largest stay. What equals the largest or the
    smallest of these stays as well.
    """
    size = row.stored.numel()
    count = kept_count(density, size)
    outliers = min(round(gamma * size), size - count)
    if not (count and outliers):
        return Largest.of(row, count)
    return Band(row.threshold(outliers + count), row.threshold(outliers + 1))


def drop(row: ExpertTensor, density: float, seed: int, *, rescale: bool) -> Sparsifier:
    """Returns the sparsifier that keeps each entry with probability `density`.

    Equal noise gives nested masks: what a density keeps, a larger one keeps too. Chance may empty
    a small tensor; keeping an entry by force would bias the mean.

    Args:
        row: the expert; its identity and the tensor's name are part of the noise.
        density: in [0, 1].
        seed: of the noise, which is not read where the density is 0 or 1.
        rescale: divide what is kept by `density`, so that the mean over noise is the delta.
    """
    if not 0 < density < 1:
        return KEEP_ALL if density >= 1 else KEEP_NONE
    return Drawn(row.draws(seed), density, 1 / max(density, _FINEST) if rescale else 1.0)


def magprune(
    row: ExpertTensor, density: float, epsilon: float, seed: int, *, rescale: bool
) -> Sparsifier:
    """Returns the sparsifier that keeps each entry with a chance that rises with its magnitude.

    ``p = density - e + 2 e rank / (n - 1)``, rank from 0 (smallest magnitude) within each row of
    n entries; ``e = min(epsilon, density, 1 - density)``, so that every p is a probability and
    their mean is `density`. A row is what one index of the first dimension holds; a tensor of
    less than two dimensions is one row. Equal magnitudes share the mean of their ranks.

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
        return KEEP_ALL if density >= 1 else KEEP_NONE
    width = min(epsilon, density, 1 - density)
    steps = row.row_length - 1
    lowest = density - width if steps else density
    # p = lowest + step (2 rank)
    return Pruned(row.draws(seed), row.ranks(), lowest, width / max(steps, 1), rescale)


@dataclass(frozen=True)
class Largest:
    """Keeps ``|d| >= threshold``: all where that is 0."""

    threshold: float
    scale: float = 1.0

    @classmethod
    def of(cls, row: ExpertTensor, count: int) -> Largest:
        """Returns the sparsifier that keeps the `count` largest magnitudes of a delta."""
        if not 0 < count < row.stored.numel():
            return KEEP_ALL if count > 0 else KEEP_NONE
        return cls(row.threshold(count))

    def __call__(self, start: int, delta: Tensor, scratch: Scratch) -> None:
        """Zeroes the others."""
        if self.threshold > 0:  # d where |d| >= threshold, else 0
            torch.hardshrink(delta, _below(self.threshold, delta.dtype), out=delta)

    def packed(self) -> PackedSelection:
        """Returns the number below the threshold."""
        if self.threshold <= 0:
            return PackedSelection(SelectionKind.ALL)
        return PackedSelection(SelectionKind.LARGEST, (_below(self.threshold, torch.float32),))


KEEP_ALL = Largest(0.0)
KEEP_NONE = Largest(math.inf)


def _below(threshold: float, dtype: torch.dtype) -> float:
    """Returns the next smaller number of `dtype`; -1, which no magnitude is below, for 0."""
    if threshold <= 0:
        return -1.0
    kind = np.float64 if dtype == torch.float64 else np.float32
    return float(np.nextafter(kind(threshold), kind(0)))


@dataclass(frozen=True)
class Band:
    """Keeps ``lowest <= |d| <= highest``."""

    lowest: float
    highest: float
    scale: float = 1.0

    def __call__(self, start: int, delta: Tensor, scratch: Scratch) -> None:
        """Zeroes the others."""
        outliers = torch.hardshrink(delta, self.highest, out=scratch["probability"])
        torch.hardshrink(delta, _below(self.lowest, delta.dtype), out=delta)
        delta.sub_(outliers)

    def packed(self) -> PackedSelection:
        """Returns the number below the lowest, and the highest."""
        return PackedSelection(
            SelectionKind.BAND, (_below(self.lowest, torch.float32), self.highest)
        )


@dataclass(frozen=True, eq=False)
class Masked:
    """Keeps the entries where `mask`, ``(entries of the parameter,)`` of 0 and 1, is 1."""

    mask: Tensor
    scale: float = 1.0

    @classmethod
    def largest(cls, rows: ExpertTensors, kind: str, values: Tensor, count: int) -> Masked:
        """Returns the mask of the `count` largest values, and of what equals the smallest.

        Args:
            rows: what the values depend on.
            kind: what they are, for caching their order.
            values: ``(entries,)``, at least 0.
            count: at most the number of entries.
        """
        if not 0 < count < len(values):
            return cls(torch.full_like(values, float(count > 0)))
        least = kth_magnitude(rows, kind, count, lambda: values)
        return cls(torch.ge(values, least, out=torch.empty_like(values)))

    def __call__(self, start: int, delta: Tensor, scratch: Scratch) -> None:
        """Multiplies by the mask."""
        delta.mul_(self.mask[start : start + len(delta)])

    def packed(self) -> PackedSelection:
        """Returns the address of the mask."""
        return PackedSelection(SelectionKind.MASKED, integers=(self.mask.data_ptr(),))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Keeps entries whose draw, ``(entries of the parameter,)``, lies below the density."""

    draws: Tensor
    density: float
    scale: float

    def __call__(self, start: int, delta: Tensor, scratch: Scratch) -> None:
        """Zeroes the others."""
        draws = self.draws[start : start + len(delta)]
        # d where -1 < draws < density, else 0
        _pass_within(delta, draws, -1.0, self.density, grad_input=delta)

    def packed(self) -> PackedSelection:
        """Returns the density and the address of the draws."""
        return PackedSelection(SelectionKind.DRAWN, (self.density,), (self.draws.data_ptr(),))


@dataclass(frozen=True, eq=False)
class Pruned:
    """Keeps entries whose draw lies below ``p = lowest + step rank``, ranks as stored: twice."""

    draws: Tensor
    ranks: Tensor
    lowest: float
    step: float
    rescale: bool
    scale: float = 1.0

    def __call__(self, start: int, delta: Tensor, scratch: Scratch) -> None:
        """Zeroes the others, and divides these by p where they are rescaled."""
        here = slice(start, start + len(delta))
        p = scratch["probability"].copy_(self.ranks[here]).mul_(self.step).add_(self.lowest)
        delta.mul_(torch.lt(self.draws[here], p, out=scratch["mask"]))
        if self.rescale:
            delta.div_(p if self.lowest >= _FINEST else p.clamp_(min=_FINEST))

    def packed(self) -> PackedSelection:
        """Returns step, lowest and rescale; addresses of draws and ranks, and the ranks' dtype."""
        return PackedSelection(
            SelectionKind.PRUNED,
            (self.step, self.lowest, float(self.rescale)),
            (self.draws.data_ptr(), self.ranks.data_ptr(), ENTRY_TYPES[self.ranks.dtype]),
        )
