"""The noise has the distribution of its formula; distances are those of all pairs."""

import math

import pytest
import torch
from scipy import stats

from experiments.experts.split import metric_noise
from experiments.experts.split.metric_noise import (
    eta_of,
    mean_neighbour_distance,
    nearest,
    sample,
)
from search.privacy.private_noise import Bits

N = 4000


@pytest.mark.parametrize("width", [1, 2, 3, 16, 384])
def test_length_direction_and_coordinates_follow_the_formula(width: int) -> None:
    """Length Gamma(d, 1 / eta), independent of a direction that is uniform on the sphere."""
    eta = 2.5
    noise = sample((N, width), eta, Bits(b"width %d" % width)).numpy()
    lengths = (noise**2).sum(axis=1) ** 0.5
    assert stats.kstest(lengths, stats.gamma(width, scale=1 / eta).cdf).pvalue > 0.01
    for axis in {0, width // 2, width - 1}:
        cosines = noise[:, axis] / lengths
        if width == 1:
            assert stats.binomtest(int((cosines > 0).sum()), N).pvalue > 0.01
        else:  # (1 + a coordinate of a uniform direction) / 2 is Beta((d - 1) / 2, same)
            half = (width - 1) / 2
            assert stats.kstest((1 + cosines) / 2, stats.beta(half, half).cdf).pvalue > 0.01
            assert stats.spearmanr(lengths, cosines**2).pvalue > 0.01
        # kurtosis of a coordinate is at most that of Laplace, 6: sd of its deviation < 1.2/sqrt n
        expected = math.sqrt(width + 1) / eta
        assert noise[:, axis].std() == pytest.approx(expected, rel=4 * 1.2 / math.sqrt(N))
    if width > 1:
        cosine = (noise[::2] * noise[1::2]).sum(axis=1) / (lengths[::2] * lengths[1::2])
        assert stats.kstest((1 + cosine) / 2, stats.beta(half, half).cdf).pvalue > 0.01


def test_every_row_has_its_own_eta_and_blocks_change_no_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    etas = torch.linspace(0.5, 50, N, dtype=torch.float64)
    whole = sample((N, 8), etas, Bits(b"rows"))
    monkeypatch.setattr(metric_noise, "_NUMBERS", 8 * 7)
    for noise in (whole, sample((N, 8), etas, Bits(b"rows"))):
        lengths = (noise.norm(dim=1) * etas).numpy()
        assert stats.kstest(lengths, stats.gamma(8).cdf).pvalue > 0.01
    assert sample((0, 8), 1.0, Bits(b"none")).shape == (0, 8)
    assert torch.equal(whole, sample((N, 8), etas, Bits(b"rows"))) is False  # other blocks
    with pytest.raises(ValueError, match="above 0"):
        sample((2, 3), torch.tensor([1.0, 0.0]), Bits(b"x"))


def test_the_density_ratio_is_bounded_by_eta_times_the_distance() -> None:
    """On histograms of two noised points in the plane, for the largest event of all."""
    eta, gap, count = 1.5, 0.8, 200_000
    noise = sample((2 * count, 2), eta, Bits(b"planes")).numpy()
    first, second = noise[:count, 0], noise[count:, 0] + gap
    for cut in (-1.0, 0.0, 0.4, 0.8, 2.0):
        low, high = sorted([(first > cut).mean(), (second > cut).mean()])
        assert high <= low * math.exp(eta * gap) * (1 + 6 / math.sqrt(low * count))
    # ln of the ratio nears eta r far away along the line between the points
    assert math.log((second > 2.5).mean() / (first > 2.5).mean()) > 0.75 * eta * gap


def test_neighbours_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_noise, "_NUMBERS", 90)  # three rows at once
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(31, 5, generator=draw) + 100  # far from 0, where squares cancel
    pairs = torch.cdist(
        table.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    expected = pairs.fill_diagonal_(math.inf).amin(dim=1).mean()
    assert mean_neighbour_distance(table) == pytest.approx(float(expected), rel=1e-3)
    tokens = torch.arange(31) // 2  # two states of each token
    expected = pairs.masked_fill(tokens[:, None] == tokens, math.inf).amin(dim=1).mean()
    assert mean_neighbour_distance(table, tokens) == pytest.approx(float(expected), rel=1e-3)
    assert eta_of(2.0, 5, 0.5) == 5.0  # d / eta = 1 = 2 units
    near = table + 0.01
    assert nearest(near, table).tolist() == list(range(31))
    for vectors, of in ((table[:1], None), (table, torch.zeros(31)), (torch.ones(3, 2), None)):
        with pytest.raises(ValueError, match="neighbours"):
            mean_neighbour_distance(vectors, of)
