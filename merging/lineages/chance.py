"""What crossovers and mutations have in common: seeded masks and checked numbers.

Masks are drawn on the CPU, seeded by (operator, its seed, tensor, block), so that every device
and every order of evaluation sees the same.
"""

import math
import operator

import numpy as np
import torch
from torch import Tensor

from merging.lineages.slices import EntryRange
from merging.seeding import stable_seed

MASK_LEVELS = 2**16
"""Probabilities are multiples of 1 / `MASK_LEVELS`: 16 random bits per entry decide."""


def mask(probability: float, block: EntryRange, kind: str, seed: int, like: Tensor) -> Tensor:
    """Returns -1 (all bits set) with the given probability, else 0; ``(entries,)`` int32, new.

    The probability is rounded to 1 / `MASK_LEVELS`; `like` gives the device.
    """
    count = block.stop - block.start
    bits = np.random.SFC64(stable_seed(kind, seed, block.tensor.name, block.number))
    raw = bits.random_raw(-(-count // 4))  # 64 bits each: four entries
    levels = raw.astype("<u8", copy=False).view("<u2")[:count]
    chosen = torch.from_numpy(levels < level(probability)).to(like.device)
    return chosen.to(torch.int32).neg_()


def level(probability: float) -> int:
    """Returns a probability in units of 1 / `MASK_LEVELS`."""
    return round(probability * MASK_LEVELS)


def set_int(part: object, field: str) -> None:
    """Makes a field an int: equal numbers give equal JSON; raises ValueError where it is none."""
    value = getattr(part, field)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{field} must be a whole number, got {value!r}")
    object.__setattr__(part, field, operator.index(value))


def set_float(part: object, field: str) -> None:
    """Makes a field a finite float, as `set_int`; raises ValueError where it is none."""
    value = getattr(part, field)
    number = hasattr(value, "__float__") and not isinstance(value, bool | str)
    if not (number and math.isfinite(value)):
        raise ValueError(f"{field} must be a finite number, got {value!r}")
    object.__setattr__(part, field, float(value) + 0.0)  # -0.0 is 0.0


def set_fraction(part: object, field: str) -> None:
    """Makes a field a float in [0, 1], as `set_int`; raises ValueError where it is none."""
    object.__setattr__(part, field, fraction(field, getattr(part, field)))


def fraction(field: str, value: object) -> float:
    """Returns `value` as a float; raises ValueError with `field` unless it lies in [0, 1]."""
    number = int | float | np.floating
    if isinstance(value, bool) or not isinstance(value, number) or not 0 <= value <= 1:
        raise ValueError(f"{field} must hold fractions in [0, 1], got {value!r}")
    return float(value) + 0.0
