"""What mechanisms cost together: Renyi differential privacy, and privacy loss distributions."""

import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, reduce
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
    RandomSelection,
    leaves,
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
    pure = [one for one in mechanisms if isinstance(one, PureEpsilon)]
    others = [one for one in mechanisms if not isinstance(one, PureEpsilon)]
    if not 0 <= delta < 1 or (others and delta == 0):
        raise AccountingError(f"delta must be in (0, 1), got {delta}: Gaussian noise needs one")
    _check_sampling(mechanisms, relation)
    added = math.fsum(one.epsilon * one.count for one in pure)  # sum_i epsilon_i
    if delta == 0:
        return added
    if accountant == "pld":
        return float(_loss(tuple(mechanisms)).get_epsilon_for_delta(delta))
    # Adding pure mechanisms up is better where they are few or weak, RDP where they are many.
    return min(_by_rdp(mechanisms, delta), _by_rdp(others, delta) + added)


def holds(
    mechanisms: Sequence[Mechanism],
    bound: float,
    delta: float,
    *,
    accountant: Accountant = "rdp",
    relation: str = "add_or_remove",
) -> bool:
    """Returns whether `epsilon` of the same arguments is `bound` at most.

    dp-accounting goes through a privacy loss distribution loss by loss to find an epsilon, and
    finds the delta of an epsilon fifty times as fast.
    """
    if accountant == "pld" and mechanisms and delta > 0:
        _check_sampling(mechanisms, relation)
        return bool(_loss(tuple(mechanisms)).get_delta_for_epsilon(bound) <= delta)
    return epsilon(mechanisms, delta, accountant=accountant, relation=relation) <= bound


def divergence(mechanisms: Sequence[Mechanism], order: float) -> float:
    """Returns the Renyi divergence of all mechanisms together at one of dp-accounting's orders.

    Raises:
        AccountingError: the extra ``dp`` is missing.
        ValueError: it bounds no divergence of this order.
    """
    orders = list(_library().rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    return float(_composed(mechanisms)[orders.index(order)])


def _check_sampling(mechanisms: Sequence[Mechanism], relation: str) -> None:
    gaussian = [one for one in leaves(mechanisms) if isinstance(one, GaussianMechanism)]
    if relation != "add_or_remove" and any(one.sampling_rate < 1 for one in gaussian):
        raise AccountingError(
            "Poisson sampling is accounted for under add_or_remove only, not under replace_one"
        )


def _by_rdp(mechanisms: Sequence[Mechanism], delta: float) -> float:
    rdp = _library().rdp
    orders = rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS
    return float(rdp.compute_epsilon(orders, _composed(mechanisms), delta)[0])


def _composed(mechanisms: Sequence[Mechanism]) -> Vector:
    """Returns the Renyi divergence of all of them at every order: they add up."""
    total: Vector = np.zeros(len(_library().rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS))
    for one in mechanisms:
        if isinstance(one, GaussianMechanism):
            total = total + one.steps * _curve(replace(one, steps=1))
        elif isinstance(one, PureEpsilon):
            total = total + one.count * _curve(replace(one, count=1))
        else:
            total = total + _mixed(one)
    return total


def _mixed(selection: RandomSelection) -> Vector:
    """Returns the divergence D of a draw, with the drawn option i in view.

    ``exp((a - 1) D) = sum_i p_i exp((a - 1) D_i)``, as ``E_Q (P/Q)^a`` is a mean over i.
    """
    order_1 = np.array(_library().rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS) - 1  # a - 1
    moments = [
        math.log(p) + order_1 * _composed(option)
        for p, option in zip(selection.probabilities, selection.options, strict=True)
    ]
    mixed: Vector = np.logaddexp.reduce(moments, axis=0) / order_1
    return np.maximum(mixed, 0.0)  # -1e-17 is 0


@lru_cache(maxsize=256)
def _curve(one: GaussianMechanism | PureEpsilon) -> Vector:
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


def _event(dp: Any, one: GaussianMechanism | PureEpsilon) -> Any:
    if isinstance(one, GaussianMechanism):
        event, rate = dp.GaussianDpEvent(one.noise_multiplier), one.sampling_rate
        return event if rate == 1 else dp.PoissonSampledDpEvent(rate, event)
    if isinstance(one, LaplaceMechanism):
        return dp.LaplaceDpEvent(1 / one.epsilon)
    # (epsilon, 0)-DP is (epsilon^2 / 2)-zCDP (Bun & Steinke 2016, proposition 1.4)
    return dp.ZCDpEvent(rho=one.epsilon**2 / 2)


@lru_cache(maxsize=32)
def _loss(mechanisms: tuple[Mechanism, ...]) -> Any:
    """Returns the privacy loss distribution of all of them, composed; at least one."""
    losses = [_mixed_loss(m) if isinstance(m, RandomSelection) else _own(m) for m in mechanisms]
    return reduce(lambda one, other: one.compose(other), losses)


def _mixed_loss(selection: RandomSelection) -> Any:
    """Mixes the distributions, i in view: ``delta(epsilon) = sum_i p_i delta_i(epsilon)``."""
    mixed, weight = _loss(selection.options[0]), selection.probabilities[0]
    for p, option in zip(selection.probabilities[1:], selection.options[1:], strict=True):
        mixed, weight = mixed.compute_mixture(_loss(option), weight / (weight + p)), weight + p
    return mixed


def _own(one: GaussianMechanism | PureEpsilon) -> Any:
    """Returns the distribution of one mechanism, repetitions composed.

    dp-accounting 0.6.0 composes a repeated randomised response once only, whatever its count, so
    that pure mechanisms come as distributions of their own here.
    """
    _library()
    from dp_accounting.pld import common, privacy_loss_distribution

    if isinstance(one, GaussianMechanism):
        loss = privacy_loss_distribution.from_gaussian_mechanism(
            one.noise_multiplier, sampling_prob=one.sampling_rate
        )
        return loss.self_compose(one.steps)
    if isinstance(one, LaplaceMechanism):
        loss = privacy_loss_distribution.from_laplace_mechanism(1 / one.epsilon)
    else:
        parameters = common.DifferentialPrivacyParameters(one.epsilon, 0)
        loss = privacy_loss_distribution.from_privacy_parameters(parameters)
    return loss.self_compose(one.count)


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
