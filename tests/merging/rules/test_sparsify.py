"""Sparsifiers keep exactly what they say, and directions keep their precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from merging.method import MergeMethod, Slot
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.sce import Sce
from merging.methods.ties import Ties
from merging.rules.cache import ExpertTensor, TensorCache
from merging.rules.magnitudes import rank_in_rows
from merging.rules.sparsify import BUFFERS, Sparsifier, band, kept_count, magprune, trim
from merging.rules.spherical import direction_and_length
from tests.merging.methods.method_cases import start_knobs


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
@given(values=few_values, density=st.floats(0, 1), gamma=st.floats(0, 1))
def test_cuts_keep_their_number_and_all_that_equals_the_last(
    values: list[float], density: float, gamma: float
) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    size, falling = len(values), sorted(map(abs, values), reverse=True)
    count = kept_count(density, size)
    outliers = min(round(gamma * size), size - count)
    for first, kind in ((0, trim), (outliers, lambda row, share: band(row, share, gamma))):
        inside = falling[first : first + count] or [np.inf]
        most = inside[0] if first else np.inf
        expected = [v if inside[-1] <= abs(v) <= most else 0.0 for v in values]
        for exact in (delta, delta.double()):
            for cache in (None, TensorCache(1000)):
                assert applied(kind(row_of(exact, cache), density), exact).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(values=few_values.filter(bool), rows=st.integers(1, 3))
def test_equal_magnitudes_share_the_mean_of_their_ranks(values: list[float], rows: int) -> None:
    delta = torch.tensor([values[i:] + values[:i] for i in range(rows)])
    for exact in (delta, delta.double()):
        ranks = rankdata(np.abs(exact.numpy()), axis=1) - 1
        assert rank_in_rows(exact).tolist() == (2 * ranks).reshape(-1).tolist()


def bfloat16_experts(count: int) -> tuple[Tensor, Tensor]:
    """Weights of 0.02 that moved by 1e-4: nearly all deltas are 0, one step, or two."""
    noise = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn((64, 48), generator=noise)
    moved = [base + 1e-4 * torch.randn(base.shape, generator=noise) for _ in range(count)]
    base = base.bfloat16().float()
    return base, torch.stack([own.bfloat16().float() - base for own in moved])


@pytest.mark.parametrize("method", [Ties(), Breadcrumbs(), BreadcrumbsTies(), Sce()], ids=repr)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_no_entry_is_favoured_for_its_place(method: MergeMethod, density: float) -> None:
    base, deltas = bfloat16_experts(3)
    knobs = start_knobs(method, 3, torch.float32)
    knobs["density"] = torch.full_like(knobs["density"], density)
    slot = Slot("w", ("a", "b", "c"))
    turned = method.merge(slot, base.flip(0, 1), deltas.flip(1, 2), knobs).flip(0, 1)
    merged = method.merge(slot, base, deltas, knobs)
    torch.testing.assert_close(merged, turned, rtol=0, atol=1e-8)  # of steps of 1e-4


def test_chances_follow_the_magnitude_alone() -> None:
    _, deltas = bfloat16_experts(1)
    pruned = magprune(row_of(deltas[0]), 0.5, 0.4, 0, rescale=True)
    turned = magprune(row_of(deltas[0].flip(1)), 0.5, 0.4, 0, rescale=True)
    ranks, of_turned = (found.ranks.view(deltas[0].shape) for found in (pruned, turned))
    assert torch.equal(ranks, of_turned.flip(1))
    chances = pruned.lowest + pruned.step * ranks.double()
    assert chances.mean(1).numpy() == pytest.approx(0.5)


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
