"""Magnitudes that are counted are those that are put in order."""

import pytest
import torch

from merging.rules.counting import TYPES, kth_difference
from merging.rules.magnitudes import select_magnitude


@pytest.mark.parametrize("base_dtype", [*TYPES, None])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kth_magnitude_is_that_of_a_sorted_delta(
    dtype: torch.dtype, base_dtype: torch.dtype | None
) -> None:
    """Of few entries and of several threads' worth, of the largest, the smallest and one of many
    that are equal, and of zeros."""
    draw = torch.Generator().manual_seed(3)
    for size in (1, 300, 2**20 + 5):
        base = torch.randn(size, generator=draw).to(base_dtype or dtype)
        base[: size // 3] = 0
        stored = (base.float() + 0.01 * torch.randn(size, generator=draw)).to(dtype)
        stored[size // 4 : size // 3] = 0
        given = None if base_dtype is None else base
        delta = stored.float() - (0 if given is None else given.float())
        for count in {1, size, max(1, size // 2), max(1, size // 5)}:
            assert kth_difference(stored, given, count) == select_magnitude(delta, count)
