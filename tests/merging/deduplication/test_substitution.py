"""Blocks and what stands in their place: against plain loops, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.deduplication.blocking import ModelBlocks, l1_distances
from merging.deduplication.substitution import Candidates, Substitution, cluster_ratio

SHAPES = {"a": (5, 7), "norm": (40,), "b": (3, 4, 4), "small": (2, 3), "c": (8, 2)}


def model(seed: int, dtype: torch.dtype = torch.float32, more: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES | ({"extra": (more, 9)} if more else {})
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


def padded(weights: dict[str, Tensor], size: int) -> list[Tensor]:
    """The blocks, cut by hand."""
    rows = []
    for tensor in weights.values():
        if tensor.dim() >= 2 and tensor.numel() >= size:
            flat = torch.cat([tensor.flatten(), torch.zeros(-tensor.numel() % size)])
            rows += list(flat.reshape(-1, size).to(tensor.dtype))
    return rows


@pytest.mark.parametrize("size", [7, 16])
def test_rows_and_distances_are_those_of_a_plain_loop(size: int) -> None:
    one, other = model(1), model(2, more=4)
    left, right = ModelBlocks(one, size), ModelBlocks(other, size)
    rows, others = padded(one, size), padded(other, size)
    assert len(left) == len(rows)
    assert len(right) == len(others)
    assert all(torch.equal(left.row(i), row) for i, row in enumerate(rows))
    expected = torch.tensor([[(a.double() - b).abs().sum() for b in others] for a in rows])
    for chunk in (1, 200, 10**6):
        done: list[int] = []
        found = l1_distances(left, right, chunk_bytes=chunk, on_rows=done.append)
        torch.testing.assert_close(found.float(), expected.float())
        assert sum(done) == len(rows)
    own = l1_distances(left, left, chunk_bytes=200)
    torch.testing.assert_close(own, own.T, rtol=0, atol=0)
    assert left.untouched == sum(
        t.numel() for t in one.values() if t.dim() < 2 or t.numel() < size
    )


groups = st.lists(st.lists(st.integers(0, 14), min_size=1, max_size=4, unique=True), max_size=5)


@given(groups, st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=30)
def test_substitution_and_the_rebuilt_model_are_those_of_a_plain_loop(
    asked: list[list[int]], dtype: torch.dtype
) -> None:
    size = 7
    target, bases = model(1, dtype), [model(2, dtype), model(3, dtype, more=4)]
    blocks = [ModelBlocks(weights, size) for weights in (*bases, target)]
    candidates = Candidates.of(blocks[-1], blocks[:-1])
    rows = [row for weights in (*bases, target) for row in padded(weights, size)]
    own, count = candidates.own, len(blocks[-1])
    now, points, removed = Substitution.none(candidates), list(range(own, own + count)), set()
    state = {name: tensor.float().clone() for name, tensor in target.items()}
    for group in asked:
        group = [block for block in group if block < count and block not in removed]
        before, now = now, now.substitute(group)
        removed |= set(group)
        free = [j for j in range(own + count) if j - own not in removed]
        for block in group:
            far = [(rows[own + block].float() - rows[j].float()).abs().sum() for j in free]
            nearest = free[int(torch.stack(far).argmin())]
            points = [nearest if point == own + block else point for point in points]
        assert now.pointers.tolist() == points
        now.write(state, now.changed(before))
    assert set(now.kept) == {point - own for point in points if point >= own}
    assert removed.isdisjoint(now.kept)
    assert now.removed == removed
    assert now.lent == {p - own for i, p in enumerate(points) if p >= own and p != own + i}
    firsts = np.cumsum([0, *map(len, blocks[:-1])])
    assert set(now.sources) == {
        int(np.searchsorted(firsts, p, side="right")) - 1 for p in points if p < own
    }
    expected = dict(target)
    cut = iter(points)
    for name, tensor in target.items():
        if name in blocks[-1].tensors:
            flat = torch.cat([rows[next(cut)] for _ in range(-(-tensor.numel() // size))])
            expected[name] = flat[: tensor.numel()].reshape(tensor.shape)
    weights = now.weights()
    assert list(weights) == list(target)
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor)
        assert weights.shape(name) == tensor.shape
        assert torch.equal(state[name], tensor.float())
        assert (
            from_segments(now, name, target, bases) == tensor.view(torch.uint8).numpy().tobytes()
        )
    whole = sum(t.numel() for t in target.values())
    assert now.ratio == (len(now.kept) * size + blocks[-1].untouched) / whole
    now.write(state, range(count))
    Substitution.none(candidates).write(state, range(count))
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in target.items())


def from_segments(
    now: Substitution, name: str, target: dict[str, Tensor], bases: list[dict[str, Tensor]]
) -> bytes:
    parts = []
    for segment in now.segments(name):
        if segment.origin == "zeros":
            parts.append(bytes(segment.length))
            continue
        model_ = target if segment.origin == "own" else bases[int(segment.origin)]
        raw = model_[segment.tensor].view(torch.uint8).numpy().tobytes()
        parts.append(raw[segment.start : segment.start + segment.length])
    return b"".join(parts)


def test_what_follows_each_other_is_one_segment() -> None:
    target, base = model(1), {name: tensor.clone() for name, tensor in model(1).items()}
    candidates = Candidates.of(ModelBlocks(target, 7), [ModelBlocks(base, 7)])
    now = Substitution.none(candidates)
    assert [len(now.segments(name)) for name in target] == [1] * len(target)
    gone = now.substitute(range(len(candidates.target)))  # an equal base takes all of it
    assert [s.origin for s in gone.segments("a")] == [0]
    assert gone.segments("norm")[0].length == 160
    assert gone.kept == ()
    assert gone.sources == (0,)
    assert gone.ratio == candidates.target.untouched / candidates.target.elements
    whole = candidates.target.elements
    assert cluster_ratio([candidates.bases[0]], [gone, now]) == pytest.approx(
        (whole + gone.ratio * whole + now.ratio * whole) / (3 * whole)
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        ModelBlocks(model(1), 0)
    with pytest.raises(
        ValueError, match=r"the largest tensor has 48\): choose a smaller block_si"
    ):
        ModelBlocks(model(1), 49)
    with pytest.raises(
        ValueError, match=r"cannot stand for blocks of 7 torch\.bfloat16: save both"
    ):
        l1_distances(ModelBlocks(model(1), 7), ModelBlocks(model(1, torch.bfloat16), 7))
    alone = Substitution.none(Candidates.of(ModelBlocks(model(1), 7), []))
    with pytest.raises(ValueError, match="no block is left to stand for the others: add a base"):
        alone.substitute(range(15))
    with pytest.raises(ValueError, match="block 3 was removed already"):
        alone.substitute([3]).substitute([2, 3])
