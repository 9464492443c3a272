"""Sparsifiers keep exactly what they say, and directions keep their precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.rules.cache import (
    ExpertTensor,
    TensorCache,
    by_magnitude,
    rank_in_rows,
    select_threshold,
)
from merging.rules.sparsify import BUFFERS, Sparsifier, band, kept_count, trim
from merging.rules.spherical import direction_and_length


def row_of(delta: Tensor, cache: TensorCache | None = None) -> ExpertTensor:
    return ExpertTensor("w", "e", delta, False, torch.zeros_like(delta), delta.dtype, cache)


def applied(keep: Sparsifier, delta: Tensor, length: int = 5) -> Tensor:
    """Returns what is kept, computed in blocks."""
    out = delta.clone()
    for start in range(0, len(out), length):
        block = out[start : start + length]
        keep(start, block, {name: torch.empty_like(block) for name in BUFFERS})
    return out


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
def test_kept_count(density: float, size: int, expected: int) -> None:
    assert kept_count(density, size) == expected


@settings(max_examples=200, deadline=None)
@given(values=few_values, density=st.floats(0, 1))
def test_trim_keeps_the_exact_number_and_the_earlier_of_equals(
    values: list[float], density: float
) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    count = min(len(values), kept_count(density, len(values)))
    order = np.argsort([-abs(v) for v in values], kind="stable")[:count]
    expected = [v if i in order else 0.0 for i, v in enumerate(values)]
    for cache in (None, TensorCache(1000)):
        assert applied(trim(row_of(delta, cache), density), delta).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(values=few_values, density=st.floats(0, 1), gamma=st.floats(0, 1))
def test_band_keeps_the_exact_number(values: list[float], density: float, gamma: float) -> None:
    delta = torch.tensor([v + 0.5 for v in values], dtype=torch.float32)  # no zeros
    found = applied(band(row_of(delta), density, gamma), delta)
    assert int((found != 0).sum()) == kept_count(density, len(values))


@settings(max_examples=100, deadline=None)
@given(values=few_values.filter(bool), rows=st.integers(1, 3), data=st.data())
def test_cuts_and_ranks_are_those_of_stable_sorts(
    values: list[float], rows: int, data: st.DataObject
) -> None:
    """Packed into one number (float32) or sorted by torch (float64)."""
    delta = torch.tensor([values[i:] + values[:i] for i in range(rows)])
    for exact in (delta, delta.double()):
        flat = exact.numpy().reshape(-1)
        order = np.argsort(-np.abs(flat), kind="stable")
        by_row = np.argsort(np.abs(exact.numpy()), axis=1, kind="stable")
        ranks = np.argsort(by_row, axis=1).reshape(-1)
        assert rank_in_rows(exact).tolist() == ranks.tolist()
        count = data.draw(st.integers(1, len(flat)))
        cut = select_threshold(exact.abs().reshape(-1), count)
        assert (cut.threshold, cut.last) == (abs(flat[order[count - 1]]), order[count - 1])


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-1, 1, width=32) | st.sampled_from([0.5, -0.5]), max_size=50),
    coarse=st.booleans(),
)
def test_order_of_magnitudes_is_a_stable_sort(values: list[float], coarse: bool) -> None:
    """With and without bits that bfloat16 does not have."""
    delta = torch.tensor(values, dtype=torch.float32)
    delta = delta.bfloat16().float() if coarse else delta
    order = np.argsort(-np.abs(delta.numpy()), kind="stable")
    assert by_magnitude(delta).tolist() == order.tolist()


def test_tensors_are_cached_up_to_their_bytes() -> None:
    cache = TensorCache(10)
    assert cache.get("a", 6, lambda: "first") == "first"
    assert cache.get("a", 6, lambda: "again") == "first"
    assert cache.get("b", 5, lambda: "too large") is None
    assert cache.get("c", 4, lambda: "fits") == "fits"
    assert (cache.held_bytes, cache.get("d", 0, lambda: 3.0)) == (10, 3.0)
    with pytest.raises(ValueError, match="cache_bytes is -1, expected at least 0"):
        TensorCache(-1)


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
