"""What sampled discrete Gaussian noise costs, against its Renyi divergences, summed over all k."""

import importlib.util

import numpy as np
import pytest
from scipy.special import logsumexp

from merging.arrays import Vector
from merging.checkpoints.mechanisms import DiscreteGaussianMechanism, GaussianMechanism
from merging.privacy import accounting

needs_dp = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra dp"
)
PLACES = np.arange(-200, 201)


def gaussian(sigma: float, centre: int) -> Vector:
    """Logarithms of ``P(k) ~ exp(-(k - centre)^2 / (2 sigma^2))``."""
    weights = -((PLACES - centre) ** 2) / (2 * sigma**2)
    chances: Vector = weights - logsumexp(weights)
    return chances


def divergence(one: Vector, other: Vector, order: float) -> float:
    return float(logsumexp(order * one + (1 - order) * other) / (order - 1))


@needs_dp
@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
@pytest.mark.parametrize(("sigma", "shift"), [(0.7, 1), (3.0, 1), (3.0, 2)])
def test_no_divergence_of_discrete_noise_is_above_the_accounted_one(
    sigma: float, shift: int, rate: float
) -> None:
    accounted = accounting._curve(DiscreteGaussianMechanism(sigma / shift, rate))
    orders = accounting._library().rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    without, moved = gaussian(sigma, 0), gaussian(sigma, shift)
    sampled = np.logaddexp(np.log1p(-rate) + without, np.log(rate) + moved) if rate < 1 else moved
    for order, bound in zip(orders, accounted, strict=True):
        if order <= 8:
            found = divergence(sampled, without, order), divergence(without, sampled, order)
            assert max(found) <= bound * (1 + 1e-9) + 1e-12, order


@needs_dp
def test_whole_orders_cost_hardly_more_than_all() -> None:
    for sigma, rate, steps in ((2.0, 0.1, 100), (2.0, 0.5, 4), (1.0, 0.01, 1000)):
        smooth = accounting.epsilon([GaussianMechanism(sigma, rate, steps)], 1e-5)
        discrete = accounting.epsilon([DiscreteGaussianMechanism(sigma, rate, steps)], 1e-5)
        assert smooth <= discrete <= 1.01 * smooth
