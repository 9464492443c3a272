"""Values below a threshold are counted: the price, the chances of an error, the published way."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import laplace

from experiments.papers.dedup.published_svt import PublishedSvt
from search.privacy.private_noise import SecretNoise
from search.privacy.private_svt import BelowThreshold

UNIT = 2**20


def svt(run: int = 0, **options: float) -> BelowThreshold:
    epsilon, belows = options.get("epsilon", 1.0), int(options.get("belows", 1))
    noise = SecretNoise(run.to_bytes(16, "big"))
    return BelowThreshold(
        epsilon=epsilon, sensitivity=UNIT, threshold=0, noise=noise, name="x", belows=belows
    )


def chance(values: Sequence[float], answers: Sequence[bool], scales: tuple[float, float]) -> float:
    """Integral of ``p(rho) prod_i P(answer_i)``; the threshold is 0."""
    rho = np.linspace(-60, 60, 60_001) * scales[0]
    weight = -np.abs(rho) / scales[0] - math.log(2 * scales[0])
    for value, answer in zip(values, answers, strict=True):
        weight = weight + laplace.logcdf((1 if answer else -1) * (value - rho) / scales[1])
    return float(np.trapezoid(np.exp(weight), rho))


@pytest.mark.parametrize("belows", [1, 3])
def test_all_yeses_and_the_counted_noes_cost_just_what_is_stated(belows: int) -> None:
    epsilon = 1.0
    scales = tuple(scale / UNIT for scale in svt(epsilon=epsilon, belows=belows).scales)

    def loss(first: float, second: float, level: float, low: float) -> float:
        """Neighbours: the item takes 1 from every yes and gives 1 to every no."""
        answers = [True] * 10 + [False] * belows
        one = chance([level] * 10 + [low] * belows, answers, (first, second))
        other = chance([level + 1] * 10 + [low - 1] * belows, answers, (first, second))
        return abs(math.log(one / other))

    places = [(level, low) for level in (-30, -3, 0, 30) for low in (-9, 0, 9, 80)]
    assert max(loss(scales[0], scales[1], *place) for place in places) <= epsilon + 1e-6
    worst = -60.0 * belows, 60.0 * belows
    assert loss(scales[0], scales[1], *worst) == pytest.approx(epsilon, rel=2e-3)
    assert loss(scales[0] / 1.05, scales[1], *worst) > epsilon
    assert loss(scales[0], scales[1] / 1.05, *worst) > epsilon


def test_a_good_group_is_refused_and_a_bad_one_passes_with_these_chances() -> None:
    """``P(nu - rho >= t) = (a^2 e^(-t/a) - b^2 e^(-t/b)) / (2 (a^2 - b^2))``: Lap(a), Lap(b)."""
    runs, margin = 3_000, 4.0
    passed = np.zeros((runs, 2), bool)
    for run in range(runs):
        for number, value in enumerate((-margin, margin)):
            passed[run, number] = svt(2 * run + number, belows=3).at_least(round(value * UNIT))
    a, b = (scale / UNIT for scale in svt(belows=3).scales)
    wrong = (a**2 * math.exp(-margin / a) - b**2 * math.exp(-margin / b)) / (2 * (a**2 - b**2))
    band = 4 * math.sqrt(wrong * (1 - wrong) / runs)
    assert 0.2 < wrong < 0.5
    assert abs(passed[:, 0].mean() - wrong) < band
    assert abs(1 - passed[:, 1].mean() - wrong) < band


class Silent(SecretNoise):
    """No noise at all."""

    def laplace(self, scale: int, *question: str | int) -> int:
        return 0


def test_without_noise_it_tells_the_truth_at_the_threshold_and_stops_after_its_noes() -> None:
    sure = BelowThreshold(epsilon=1.0, sensitivity=1, threshold=5, noise=Silent(bytes(16)),
                          name="x", belows=2)  # fmt: skip
    answers = [sure.at_least(value) for value in (5, 4, 6, 5)]
    assert answers == [True, False, True, True]
    assert not sure.ended
    assert not sure.at_least(-5)
    assert sure.ended
    with pytest.raises(RuntimeError, match="x: all its yeses are spent"):
        sure.at_least(9)


def yes(value: float, scale: float) -> float:
    """Chance of a yes without any noise on the threshold, which is 0."""
    return float(laplace.cdf(value / scale))


def test_the_published_variant_is_private_for_its_first_target_alone() -> None:
    """Without noise on the threshold every yes tells a little more, without any end."""
    epsilon, items, value, yeses = 1.0, 100, 7.0, 60
    one = PublishedSvt(epsilon=epsilon, items=items, failures=1, seed=0)
    scales = one.scales[0] * items, one.scales[1] * items  # in items
    sound = svt(epsilon=epsilon).scales
    assert scales == pytest.approx([2 * scale / UNIT for scale in sound], rel=1e-5)
    answers = [True] * yeses
    high, low = (chance([v] * yeses, answers, scales) for v in (value, value - 1))
    assert math.log(high / low) <= epsilon
    assert yeses * math.log(yes(value, scales[1]) / yes(value - 1, scales[1])) > epsilon

    runs = 40_000
    one.start(0.0)  # the first target; all that follow are compared with 0 itself
    counts = np.zeros(4)
    for _ in range(runs):
        one.start(0.0)
        found = 0
        while found < 3 and one.at_least(value / items):
            found += 1
        counts[found] += 1
    p = yes(value, scales[1])
    expected = runs * np.array([1 - p, p * (1 - p), p**2 * (1 - p), p**3])
    assert float(((counts - expected) ** 2 / expected).sum()) < 21.1  # 3 degrees, p = 1e-4
