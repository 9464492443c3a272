"""Discrete noise against its formulas, and an attack on the last bits of what is released."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import chi2, dlaplace, kstest

from merging.arrays import Vector
from search.privacy.private_fitness import ClippedSum, noisy_differences
from search.privacy.private_noise import (
    SCALE,
    Bits,
    Integers,
    SecretNoise,
    bernoulli_exp,
    discrete_gaussian,
    discrete_laplace,
)

DRAWS = 40_000


def bits(name: str) -> Bits:
    return Bits(name.encode())


def fits(drawn: Integers, chances: Vector) -> bool:
    """Whether draws of -k..k have these chances, what is rare in one class; p above 1e-5."""
    reach = len(chances) // 2
    often = len(drawn) * chances > 5
    counts = np.bincount(drawn[np.abs(drawn) <= reach] + reach, minlength=len(chances))[often]
    expected = len(drawn) * chances[often]
    counts = np.append(counts, len(drawn) - counts.sum())
    expected = np.append(expected, len(drawn) - expected.sum())
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return statistic < chi2.ppf(1 - 1e-5, len(counts) - 1)


class TestDistributions:
    @pytest.mark.parametrize("scale", [1, 3, 7])
    def test_discrete_gaussian(self, scale: int) -> None:
        places = np.arange(-6 * scale, 6 * scale + 1)
        weights = np.exp(-(places**2) / (2 * scale**2))
        drawn = discrete_gaussian(bits("gaussian"), scale, DRAWS)
        assert fits(drawn, weights / weights.sum())
        assert not fits(drawn + 1, weights / weights.sum())

    @pytest.mark.parametrize("scale", [1, 3, 10])
    def test_discrete_laplace(self, scale: int) -> None:
        places = np.arange(-12 * scale, 12 * scale + 1)
        drawn = discrete_laplace(bits("laplace"), scale, DRAWS)
        assert fits(drawn, dlaplace(1 / scale).pmf(places))
        assert not fits(drawn, dlaplace(0.95 / scale).pmf(places))

    def test_at_the_scale_in_use_they_are_as_good_as_continuous(self) -> None:
        drawn = SecretNoise(bytes(16)).gaussian(DRAWS, "x") / SCALE
        assert kstest(drawn, "norm").pvalue > 1e-4
        laplace = discrete_laplace(bits("x"), SCALE - 1, DRAWS) / (SCALE - 1)
        assert kstest(laplace, "laplace").pvalue > 1e-4

    @pytest.mark.parametrize("gamma", [(0, 1), (1, 3), (1, 1), (7, 3), (2**49 - 1, 2**49)])
    def test_a_coin_of_chance_exp(self, gamma: tuple[int, int]) -> None:
        above, below = gamma
        share = bernoulli_exp(bits("coin"), np.full(DRAWS, above), below).mean()
        assert share == pytest.approx(math.exp(-above / below), abs=4 / 2 / math.sqrt(DRAWS))

    @pytest.mark.parametrize("bound", [1, 2, 3, 200, 257, 2**24, 2**40 + 1])
    def test_whole_numbers_below_a_bound(self, bound: int) -> None:
        drawn = bits("below").below(bound, DRAWS)
        assert drawn.min() >= 0
        assert drawn.max() < bound
        assert abs((drawn + 0.5).mean() / bound - 0.5) < 4 * math.sqrt(1 / 12 / DRAWS)

    def test_many_at_once_are_as_independent_as_one_by_one(self) -> None:
        drawn = SecretNoise(bytes(16)).gaussian(DRAWS, "many") / SCALE
        assert len(set(drawn.tolist())) > 0.99 * DRAWS
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4 / math.sqrt(DRAWS)
        assert SecretNoise(bytes(16)).gaussian(0, "none").shape == (0,)


class Guess(SecretNoise):
    """The noise as an adversary guesses it: one value, whatever is asked."""

    def __init__(self, value: int) -> None:
        self.value = value

    def gaussian(self, count: int, *question: str | int) -> Integers:
        return np.full(count, self.value)


class Continuous(ClippedSum):
    """A planted fault: the sum and Gaussian noise of 53 bits, both floats."""

    def release(self, contributions: Vector, *question: str | int) -> float:
        clipped = np.clip(contributions, -self.clip, self.clip)
        if isinstance(self.noise, Guess):  # number of a point of the grid of uniforms
            uniform = (self.noise.value + 0.5) / 2**53
        else:
            uniform = self.noise.uniform(*question)
        noise = self.noise_multiplier * self.clip * NormalDist().inv_cdf(uniform)
        return math.fsum(clipped.tolist()) + noise


def possible(mechanism: type[ClippedSum], sigma: float, seen: float, items: Vector) -> bool:
    """Whether some noise makes exactly this release of these items.

    The release itself is asked, with every noise near the one that the items call for.
    """

    def released(noise: int) -> float:
        one = mechanism(0.05, sigma, Guess(noise))
        return noisy_differences([(items, 0 * items)], len(items), one, ())[0][0]

    honest = ClippedSum(0.05, sigma, Guess(0))
    total = 2 * seen * len(items)
    if mechanism is ClippedSum:
        near = round(total / honest.unit) - honest.sum(items)
    else:
        missing = total - float(np.clip(items, -0.05, 0.05).sum())
        near = int(NormalDist().cdf(missing / (sigma * 0.05)) * 2**53)
    return any(released(near + step) == seen for step in range(-32, 33))


@pytest.mark.parametrize("sigma", [2.0, 40.0])
def test_the_last_bits_of_ten_steps_of_dp_zo_tell_nothing_of_an_item(sigma: float) -> None:
    """Mironov's attack by whoever knows all items but one, and all of the code but the key."""

    def rejected(mechanism: type[ClippedSum]) -> tuple[int, int]:
        """Of 20 runs: for how many the truth, and the neighbouring data, are ruled out."""
        rng, found = np.random.default_rng(0), np.zeros(2, int)
        for run in range(20):
            steps = [rng.normal(0, 0.03, 40) for _ in range(10)]
            one = mechanism(0.05, sigma, SecretNoise(bytes([run]) * 16))
            seen = [
                noisy_differences([(s, 0 * s)], len(s), one, (number,))[0][0]
                for number, s in enumerate(steps)
            ]
            for place, known in enumerate((slice(0, 40), slice(1, 40))):
                data = [np.append(s[known], np.zeros(40 - len(s[known]))) for s in steps]
                pairs = zip(seen, data, strict=True)
                found[place] += not all(possible(mechanism, sigma, y, s) for y, s in pairs)
        return int(found[0]), int(found[1])

    assert rejected(Continuous) == (0, 20)
    assert rejected(ClippedSum) == (0, 0)
