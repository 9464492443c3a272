"""The skew-normal's tail against arbitrary precision, its fit against scipy."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import optimize, stats

from evaluators.memorization import skew_normal
from evaluators.memorization.skew_normal import SkewNormal, fit_skew_normal


@pytest.mark.parametrize("shape", [-30.0, 0.0, 0.7, 5.0, 40.0])
@pytest.mark.parametrize("z", [-30.0, -9.0, -3.0, -0.4, 1.5])
def test_log_cdf_is_exact_in_the_tail(shape: float, z: float) -> None:
    with mpmath.workdps(20):
        density = lambda t: 2 * mpmath.npdf(t) * mpmath.ncdf(shape * t)  # noqa: E731
        width = 1 / (1 + max(shape, 0.0)) / max(1, abs(z))
        near = [z - width * step for step in (60, 20, 8, 3, 1)] if z < 0 else []
        ends = sorted([-mpmath.inf, *near, *(x / 2 for x in range(-12, 4) if x / 2 < z), z])
        exact = float(mpmath.log(mpmath.quad(density, ends)))
    assert SkewNormal(0.0, 1.0, shape).log_cdf(z) == pytest.approx(exact, rel=1e-6, abs=1e-9)


def test_gradient_is_that_of_the_cost() -> None:
    y = np.random.default_rng(0).normal(size=50)
    for at in ([0.1, 0.2, 1.5], [-0.3, -0.1, -4.0], [0.0, 0.0, 0.0]):
        error = optimize.check_grad(
            lambda x: skew_normal._cost(x, y)[0], lambda x: skew_normal._cost(x, y)[1], at
        )
        assert error < 1e-4


def test_fit_equals_the_likelihoods_maximum_for_many_values() -> None:
    true = stats.skewnorm(3.0, loc=10.0, scale=2.0)
    values = true.rvs(4000, random_state=np.random.default_rng(2))
    mine = fit_skew_normal(values)
    shape, location, scale = stats.skewnorm.fit(values, 2.0, loc=9.0, scale=1.5)
    assert (mine.shape, mine.location, mine.scale) == pytest.approx(
        (shape, location, scale), rel=0.02
    )


def test_fit_moves_with_its_values() -> None:
    values = stats.skewnorm(2.0).rvs(100, random_state=np.random.default_rng(3))
    fit, moved = fit_skew_normal(values), fit_skew_normal(7.0 * values + 100.0)
    assert moved.location == pytest.approx(7 * fit.location + 100, rel=1e-3)
    assert moved.scale == pytest.approx(7 * fit.scale, rel=1e-3)
    assert moved.shape == pytest.approx(fit.shape, rel=1e-2)


def test_shape_of_a_half_normal_sample_is_finite() -> None:
    """All values beyond one end: the plain likelihood's shape is infinite."""
    values = np.abs(np.random.default_rng(3).normal(size=20))
    fit = fit_skew_normal(values)
    assert math.isfinite(fit.shape)
    assert 0 < fit.shape < 100
    assert math.isfinite(fit.log_cdf(-1.0))
