"""What crossovers and mutations have in common: seeded masks and checked numbers.

Random choices are drawn on the CPU, seeded by (operator, its seed, tensor, chunk), so that every
device and every order of evaluation sees the same.
"""

from __future__ import annotations

import math
import operator

import numpy as np
import torch
from torch import Tensor

from merging.lineages.slices import EntryRange
from merging.seeding import stable_seed

SHARES = 2**16
"""A share of entries counts in these parts: 16 random bits per entry decide."""


def mask(share: float, chunk: EntryRange, like: Tensor, *seed: str | int) -> Tensor:
    """Returns -1 (all bits set) with probability `share`, else 0; ``(entries,)`` int32, new.

    Args:
        share: in [0, 1], rounded to 1 / `SHARES`.
        chunk: gives number and entries.
        like: gives the device.
        seed: everything else that the draw depends on.
    """
    count = chunk.stop - chunk.start
    raw = np.random.SFC64(stable_seed(*seed, chunk.number)).random_raw(-(-count // 4))
    drawn = raw.astype("<u8", copy=False).view("<u2")[:count]
    chosen = torch.from_numpy(drawn < threshold(share)).to(like.device)
    return chosen.to(torch.int32).neg_()


def threshold(share: float) -> int:
    """Returns the number of `SHARES` that a share comes to."""
    return round(share * SHARES)


def make_whole(part: object, field: str) -> None:
    """Makes a field of a frozen dataclass an int: equal numbers shall be written equally.

    Raises:
        ValueError: it is no whole number.
    """
    value = getattr(part, field)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{field} must be a whole number, got {value!r}")
    object.__setattr__(part, field, operator.index(value))


def make_real(part: object, field: str) -> None:
    """Makes a field a finite float, as `make_whole`.

    Raises:
        ValueError: it is no finite number.
    """
    value = getattr(part, field)
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ValueError(f"{field} must be a finite number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number, got {value!r}")
    object.__setattr__(part, field, float(value) + 0.0)  # -0.0 is 0.0


def make_fraction(part: object, field: str) -> None:
    """Makes a field a float in [0, 1], as `make_whole`.

    Raises:
        ValueError: it is none.
    """
    object.__setattr__(part, field, fraction(field, getattr(part, field)))


def fraction(field: str, value: object) -> float:
    """Returns `value` as a float; raises ValueError with `field` unless it lies in [0, 1]."""
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.floating):
        raise ValueError(f"{field} must hold fractions in [0, 1], got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{field} must hold fractions in [0, 1], got {value!r}")
    return float(value) + 0.0
