"""The nearest token is that of all pairs; noise of known budgets is read by its likelihood."""

import pytest
import torch

from evaluators.inversion.nearest import NearestToken, log_frequencies
from merging.seeding import generator


def test_every_token_is_tried_at_every_place() -> None:
    draw = generator("places")
    table, places = torch.randn(23, 6, generator=draw), torch.randn(9, 6, generator=draw)

    def sent(tokens: torch.Tensor) -> torch.Tensor:
        return table[tokens] + 3 * places[: tokens.shape[1]]

    lengths = [9, 1, 4, 7] * 80  # more than one block
    states = [torch.randn(n, 6, generator=draw) + 3 * places[:n] for n in lengths]
    expected = [
        (s[:, None] - table - 3 * places[: len(s), None]).norm(dim=2).argmin(1) for s in states
    ]
    found = NearestToken(sent, 23).recover(states)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_likeliest_token_follows_from_budgets_and_frequencies() -> None:
    draw = generator("budgets")
    table = torch.randn(50, 4, generator=draw).double()
    etas = torch.rand(50, generator=draw).double() + 0.5
    prior = log_frequencies([torch.randint(50, (200,), generator=draw)], 50)
    assert prior.exp().sum() == pytest.approx(1)
    states = torch.randn(30, 4, generator=draw).double()
    gaps = (states[:, None] - table).norm(dim=2)
    expected = (4 * etas.log() - etas * gaps + prior).argmax(dim=1)
    (found,) = NearestToken(lambda t: table[t], 50, etas, prior).recover([states])
    assert torch.equal(found, expected)
    assert not torch.equal(found, gaps.argmin(dim=1))
