"""What mechanisms cost together: Renyi differential privacy, and privacy loss distributions."""

import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import numpy as np

from merging.arrays import Vector
from merging.checkpoints.mechanisms import (
    DiscreteGaussianMechanism,
    GaussianMechanism,
    LaplaceMechanism,
    Mechanism,
    PrivacyRecordError,
    PureEpsilon,
)

Accountant: TypeAlias = Literal["rdp", "pld"]


class AccountingError(PrivacyRecordError):
    """Mechanisms that cannot be accounted for together; says which and what helps."""


def available() -> bool:
    """Whether the extra ``dp`` is installed."""
    return importlib.util.find_spec("dp_accounting") is not None


def library_version() -> str:
    """Returns the version of dp-accounting; raises AccountingError where it is missing."""
    _library()
    return version("dp-accounting")


def check_delta(delta: float, units: int, what: str = "records") -> None:
    """Raises ValueError where delta allows to give one of so many units away whole."""
    if delta * units >= 1:  # to publish a unit drawn at random is (0, 1 / units)-DP
        raise ValueError(
            f"privacy.delta={delta:g} would allow to give one of the {units} {what} away whole: "
            f"choose one well below {1 / units:.1g}"
        )


def epsilon(
    mechanisms: Sequence[Mechanism],
    delta: float,
    *,
    accountant: Accountant = "rdp",
    relation: str = "add_or_remove",
) -> float:
    """Returns the epsilon of all mechanisms on one data set together, by dp-accounting.

    They may be chosen adaptively, but each with parameters fixed before the first has run.

    Discrete Gaussian noise under whole-number shifts d has the Renyi divergence of the continuous
    one at most, ``alpha |d|^2 / (2 sigma^2)`` (Canonne, Kamath, Steinke 2020, arXiv 2004.00010,
    proposition 5). With Poisson sampling the moments of whole orders are a binomial sum of these
    divergences, so they are bounded by the continuous ones too; adding a unit costs no more than
    removing one, by the reflection of Mironov, Talwar, Zhang 2019, arXiv 1908.10530, theorem 5,
    which maps whole numbers to whole numbers. Other orders follow from whole ones by convexity.

    Args:
        mechanisms: in any order; none: 0.
        delta: above 0 and below 1; 0 where no mechanism is Gaussian.
        accountant: ``rdp`` (Mironov 2017, arXiv 1702.07476), fast; ``pld`` (Koskela et al. 2020,
            arXiv 1906.03049), tighter, seconds; takes discrete noise for continuous.
        relation: that the mechanisms' sensitivities are for.

    Raises:
        AccountingError: the extra ``dp`` is missing; delta is outside its range; a Poisson sample
            under ``replace_one``, for which RDP has no formula.
    """
    if not mechanisms:
        return 0.0
    gaussian = [one for one in mechanisms if isinstance(one, GaussianMechanism)]
    pure = [one for one in mechanisms if isinstance(one, PureEpsilon)]
    if not 0 <= delta < 1 or (gaussian and delta == 0):
        raise AccountingError(f"delta must be in (0, 1), got {delta}: Gaussian noise needs one")
    if relation != "add_or_remove" and any(one.sampling_rate < 1 for one in gaussian):
        raise AccountingError(
            "Poisson sampling is accounted for under add_or_remove only, not under replace_one"
        )
    added = math.fsum(one.epsilon * one.count for one in pure)  # sum_i epsilon_i
    if delta == 0:
        return added
    if accountant == "pld":
        return _by_pld(gaussian, pure, delta)
    # Adding pure mechanisms up is better where they are few or weak, RDP where they are many.
    return min(_by_rdp(gaussian, pure, delta), _by_rdp(gaussian, [], delta) + added)


def _by_rdp(
    gaussian: Sequence[GaussianMechanism], pure: Sequence[PureEpsilon], delta: float
) -> float:
    rdp = _library().rdp
    orders = rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    total = np.zeros(len(orders))
    for noise in gaussian:
        total += noise.steps * _curve(replace(noise, steps=1))  # RDP adds up, order by order
    for one in pure:
        total += one.count * _curve(replace(one, count=1))
    return float(rdp.compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=256)
def _curve(one: Mechanism) -> Vector:
    """Returns the Renyi divergence of one step at every order: what takes the accountant long."""
    dp = _library()
    accountant: Any = dp.rdp.RdpAccountant()
    with _quiet():
        accountant.compose(_event(dp, one))
    curve: Vector = np.array(accountant._rdp)
    if isinstance(one, DiscreteGaussianMechanism) and one.sampling_rate < 1:
        curve = _by_whole_orders(np.array(accountant._orders), curve)
    curve.setflags(write=False)
    return curve


def _by_whole_orders(orders: Vector, curve: Vector) -> Vector:
    """Bounds other orders by whole ones: ``(a - 1) D_a`` is convex in a, and 0 where a is 1.

    Source: Wang, Balle, Kasiviswanathan 2019, arXiv 1808.00087, corollary 10.
    """
    whole = orders == np.floor(orders)
    moments = np.append(0.0, (orders[whole] - 1) * curve[whole])
    bound: Vector = np.interp(orders, np.append(1.0, orders[whole]), moments) / (orders - 1)
    return bound


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back a warning for every fractional order without a bound: others have one."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


def _event(dp: Any, one: Mechanism) -> Any:
    if isinstance(one, GaussianMechanism):
        event, rate = dp.GaussianDpEvent(one.noise_multiplier), one.sampling_rate
        return event if rate == 1 else dp.PoissonSampledDpEvent(rate, event)
    if isinstance(one, LaplaceMechanism):
        return dp.LaplaceDpEvent(1 / one.epsilon)
    # (epsilon, 0)-DP is (epsilon^2 / 2)-zCDP (Bun & Steinke 2016, proposition 1.4)
    return dp.ZCDpEvent(rho=one.epsilon**2 / 2)


def _by_pld(
    gaussian: Sequence[GaussianMechanism], pure: Sequence[PureEpsilon], delta: float
) -> float:
    """Composes the distributions themselves.

    dp-accounting 0.6.0 composes a repeated randomised response once only, whatever its count, so
    that pure mechanisms come as distributions of their own here.
    """
    _library()
    from dp_accounting.pld import common, privacy_loss_distribution

    total = privacy_loss_distribution.identity()
    for noise in gaussian:
        loss = privacy_loss_distribution.from_gaussian_mechanism(
            noise.noise_multiplier, sampling_prob=noise.sampling_rate
        )
        total = total.compose(loss.self_compose(noise.steps))
    for one in pure:
        if isinstance(one, LaplaceMechanism):
            loss = privacy_loss_distribution.from_laplace_mechanism(1 / one.epsilon)
        else:
            parameters = common.DifferentialPrivacyParameters(one.epsilon, 0)
            loss = privacy_loss_distribution.from_privacy_parameters(parameters)
        total = total.compose(loss.self_compose(one.count))
    return float(total.get_epsilon_for_delta(delta))


def _library() -> Any:
    """Returns dp_accounting, which takes seconds to import and comes with an extra."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise AccountingError(
            "composing mechanisms needs dp-accounting: pip install 'evomerge[dp]'"
        ) from error
    return dp_accounting
