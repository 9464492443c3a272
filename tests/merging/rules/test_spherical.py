"""Property of the arc between two tensors: the same bits however it is computed."""

import pytest
import torch
from torch import Tensor

from merging.rules.spherical import _SLICE, arc, direction_and_length


def _plainly(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns chord and resultant as the formula states them, each from a tensor of its own."""
    u, _ = direction_and_length(a)
    v, _ = direction_and_length(b)
    return direction_and_length(u - v)[1], direction_and_length(u + v)[1]


@pytest.mark.parametrize("shape", [(), (3,), (_SLICE + 5,), (7, _SLICE // 2)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_arc_has_the_formula_s_bits(
    shape: tuple[int, ...], threads: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for _ in range(2))
    if transposed:
        a, b = a.T if a.dim() == 2 else a, b.T if b.dim() == 2 else b
    kept = a.clone(), b.clone()
    found = arc(lambda: a, lambda: b, threads=threads)
    chord, resultant = _plainly(a, b)
    assert torch.equal(found.angle, 2 * torch.atan2(chord, resultant))
    assert torch.equal(found.sine, chord * resultant / 2)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])
