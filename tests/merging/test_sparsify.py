"""Sparsifiers keep exactly what they say, and directions keep their precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.sparsify import band, kept, largest, trim
from merging.spherical import direction_and_length

few_values = st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0]), max_size=12)


@pytest.mark.parametrize(
    ("density", "size", "expected"),
    [
        (0.5, 64, 32),
        (0.5, 1, 1),
        (0.01, 3, 1),
        (0.0, 64, 0),
        (1.0, 7, 7),
        (0.5, 0, 0),
        (0.2, 8, 2),
    ],
)
def test_kept(density: float, size: int, expected: int) -> None:
    assert kept(density, size) == expected


@settings(max_examples=200, deadline=None)
@given(values=few_values, density=st.floats(0, 1))
def test_trim_keeps_the_exact_number_and_the_earlier_of_equals(
    values: list[float], density: float
) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    count = min(len(values), kept(density, len(values)))
    order = np.argsort([-abs(v) for v in values], kind="stable")[:count]
    expected = [v if i in order else 0.0 for i, v in enumerate(values)]
    assert trim(delta, density).tolist() == expected
    assert int(largest(delta.abs(), count).sum()) == count


@settings(max_examples=100, deadline=None)
@given(values=few_values, density=st.floats(0, 1), gamma=st.floats(0, 1))
def test_band_keeps_the_exact_number(values: list[float], density: float, gamma: float) -> None:
    delta = torch.tensor([v + 0.5 for v in values], dtype=torch.float32)  # no zeros
    assert int((band(delta, density, gamma) != 0).sum()) == kept(density, len(values))


def test_selection_by_rank_is_the_same_with_and_without_numpy() -> None:
    values = torch.rand(501, generator=torch.Generator().manual_seed(0)).mul_(20).round_()
    flat = values.reshape(-1)
    for count in (1, 7, 250, 500):
        threshold = float(flat.kthvalue(flat.numel() - count + 1).values)
        mask = largest(values, count)
        assert float(values[mask].min()) == threshold
        assert int(mask.sum()) == count


def test_length_of_a_long_vector_keeps_float32_precision() -> None:
    """torch's vector_norm is off by 1e-4 and more here."""
    x = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    unit, length = direction_and_length(x)
    assert float(length) == pytest.approx(float(x.double().norm()), rel=1e-6)
    assert float(unit.double().norm()) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30])
def test_length_of_extreme_vectors(size: float) -> None:
    unit, length = direction_and_length(torch.tensor([3.0, 4.0]) * size)
    assert unit.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)
    assert float(length) == pytest.approx(5 * size, rel=1e-4)
