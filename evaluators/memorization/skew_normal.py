"""The skew-normal distribution: fitted to losses, and far out in its lower tail."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from merging.arrays import Vector

_C1, _C2 = 0.875913, 0.856250  # Azzalini and Arellano-Valle 2013, eq. (8)
_MOST_SKEW = 0.9  # of the sample, for the start; a skew-normal has less than 0.9953
_DIRECT = 1e-4  # above it the two terms of the distribution function do not cancel
_NODES, _WEIGHTS = np.polynomial.laguerre.laggauss(48)
_LOG_2_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class SkewNormal:
    """Density ``2 / scale * phi(z) Phi(shape z)``, ``z = (x - location) / scale``.

    In the literature location is xi, scale omega and shape alpha.
    """

    location: float
    scale: float
    shape: float

    def log_cdf(self, x: float) -> float:
        """Returns log P(X <= x), finite however far out `x` lies."""
        return _log_cdf((x - self.location) / self.scale, self.shape)


def fit_skew_normal(values: Vector) -> SkewNormal:
    """Returns the skew-normal of the largest penalised likelihood.

    ``sum log f(x) - c1 log(1 + c2 shape^2)``: without the penalty the shape of a small sample is
    often infinite, and then nothing below its least value is possible.

    Args:
        values: ``(n,)``, at least two of them different.

    Source: Azzalini and Arellano-Valle 2013, Maximum penalized likelihood estimation for
        skew-normal and skew-t distributions, arXiv 1203.2376.
    """
    mean, deviation = float(values.mean()), float(values.std())
    y = (values - mean) / deviation
    optimum = optimize.minimize(_cost, _start(y), args=(y,), jac=True, method="L-BFGS-B")
    location, log_scale, shape = (float(parameter) for parameter in optimum.x)
    return SkewNormal(mean + deviation * location, deviation * math.exp(log_scale), shape)


def _start(y: Vector) -> Vector:
    """Returns location, log scale and shape with the moments of `y`, which is standardised.

    Of the standard skew-normal the mean is ``mu = delta sqrt(2 / pi)``, the variance
    ``1 - mu^2`` and the skewness ``(4 - pi) / 2 * (mu / sqrt(1 - mu^2))^3``, with
    ``delta = shape / sqrt(1 + shape^2)``.
    """
    skew = float(np.clip((y**3).mean(), -_MOST_SKEW, _MOST_SKEW))
    root = math.copysign(abs(2 * skew / (4 - math.pi)) ** (1 / 3), skew)  # mu / sqrt(1 - mu^2)
    mu = root / math.sqrt(1 + root**2)
    delta = mu * math.sqrt(math.pi / 2)
    scale = 1 / math.sqrt(1 - mu**2)
    return np.array([-scale * mu, math.log(scale), delta / math.sqrt(1 - delta**2)])


def _cost(at: Vector, y: Vector) -> tuple[float, Vector]:
    """Returns minus the penalised log-likelihood, up to a constant, and its gradient."""
    location, log_scale, shape = at
    scale = math.exp(log_scale)
    z = (y - location) / scale
    log_tail = special.log_ndtr(shape * z)
    ratio = np.exp(-((shape * z) ** 2 + _LOG_2_PI) / 2 - log_tail)  # phi(shape z) / Phi(shape z)
    cost = len(y) * log_scale + float((z**2 / 2 - log_tail).sum())  # -sum log f, less constants
    cost += _C1 * math.log1p(_C2 * shape**2)  # c1 log(1 + c2 shape^2)
    gradient = np.array(
        [
            -float((z - shape * ratio).sum()) / scale,  # d location
            len(y) - float((z**2 - shape * ratio * z).sum()),  # d log scale
            -float((ratio * z).sum()) + 2 * _C1 * _C2 * shape / (1 + _C2 * shape**2),  # d shape
        ]
    )
    return cost, gradient


def _log_cdf(z: float, shape: float) -> float:
    direct = float(special.ndtr(z) - 2 * special.owens_t(z, shape))  # F = Phi(z) - 2 T(z, shape)
    if direct > _DIRECT:
        return math.log(min(direct, 1.0))
    return _log_tail(z, shape)


def _log_tail(z: float, shape: float) -> float:
    """Returns log F by ``F(z) = f(z) / h * int_0^inf exp(g(z - u / h) - g(z)) du``.

    ``g = log f`` is concave and ``h = g'(z)`` positive below the mode, so the integrand falls at
    least as exp(-u) and Gauss-Laguerre quadrature integrates it.
    """
    h = -z + shape * math.exp(  # g'(z) = -z + shape phi(shape z) / Phi(shape z)
        -((shape * z) ** 2 + _LOG_2_PI) / 2 - float(special.log_ndtr(shape * z))
    )
    g = _log_density(np.array([z]), shape)[0]
    # the quadrature's weights hold exp(-u), which the integrand has to give back
    integrand = np.exp(_log_density(z - _NODES / h, shape) - g + _NODES)
    return float(g - math.log(h) + math.log(_WEIGHTS @ integrand))


def _log_density(z: Vector, shape: float) -> Vector:
    """Returns ``log f = log 2 + log phi(z) + log Phi(shape z)`` of the standard skew-normal."""
    density: Vector = math.log(2) - (z**2 + _LOG_2_PI) / 2 + special.log_ndtr(shape * z)
    return density
