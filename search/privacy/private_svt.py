"""The sparse vector technique: on which side of a threshold values lie; only rare answers cost."""

from fractions import Fraction

from search.checks import check_at_least, check_positive
from search.privacy.private_noise import SecretNoise, laplace_scale


class AboveThreshold:
    """Answers "is this value at least the threshold?" until it has said yes `aboves` times.

    ``value_i + nu_i >= threshold + rho`` with one ``rho ~ Lap(D / eps_1)`` for all questions and
    ``nu_i ~ Lap(2 c D / eps_2)`` (``c D / eps_2`` where monotone) for each. All answers together
    cost exactly ``eps_1 + eps_2``, any number of noes included; no value is ever shown.

    All are whole numbers of one unit, and the noise is discrete Laplace: ``P(k + D) >=
    e^(-eps) P(k)`` for its scale ``D / eps`` and whole D, which is all that the proof needs.

    Args:
        epsilon: price of all answers together; split 1 : (2c)^(2/3), or 1 : c^(2/3).
        sensitivity: D, how much one item more or less can change a value.
        threshold: must not depend on the data.
        noise: secret; what it is asked for begins with `name`.
        name: of this use, different for every other use of the same noise.
        aboves: c, after how many yeses it is at its end.
        monotone: one item more changes all values in the same direction.

    Source: Lyu, Su, Li 2017, Understanding the sparse vector technique for differential privacy,
    algorithm 7 without numeric answers, and section 4.2 (the split).
    """

    def __init__(
        self,
        *,
        epsilon: float,
        sensitivity: int,
        threshold: int,
        noise: SecretNoise,
        name: str,
        aboves: int = 1,
        monotone: bool = False,
    ) -> None:
        check_positive(epsilon=epsilon)
        check_at_least(1, aboves=aboves, sensitivity=sensitivity)
        factor = aboves if monotone else 2 * aboves
        first = epsilon / (1 + factor ** (2 / 3))  # eps_1 : eps_2 = 1 : (2c)^(2/3)
        self.epsilons = (first, epsilon - first)
        """eps_1 of the threshold and eps_2 of the values."""
        second = Fraction(epsilon) - Fraction(first)
        self.scales = (
            laplace_scale(sensitivity, first),
            laplace_scale(factor * sensitivity, second),
        )
        """Scale of rho, and of every nu, rounded up."""
        self._noise = noise
        self._name = name
        self._left = aboves
        self._asked = 0
        # threshold + rho, rho ~ Lap(D / eps_1)
        self._threshold = threshold + noise.laplace(self.scales[0], name, "rho")

    @property
    def ended(self) -> bool:
        """Whether it has said yes as often as it may."""
        return self._left == 0

    def above(self, value: int) -> bool:
        """Returns whether the noisy value is at least the noisy threshold."""
        if self.ended:
            raise RuntimeError(
                f"{self._name}: all its yeses are spent; another question needs another budget"
            )
        nu = self._noise.laplace(self.scales[1], self._name, "nu", self._asked)
        self._asked += 1
        answer = bool(value + nu >= self._threshold)  # value + nu >= threshold + rho
        self._left -= answer
        return answer

    def repeat(self, answer: bool) -> None:
        """Counts an answer that was given, and written down, before the process was killed."""
        self._asked += 1
        self._left -= answer


class BelowThreshold:
    """Answers "is this value at least the threshold?" until it has said no `belows` times.

    `AboveThreshold` with the signs flipped: noes are counted, any number of yeses is included in
    the price. A value below is ``-value >= 1 - threshold`` in whole numbers. Every object draws a
    threshold noise of its own, so that `name` must not have been used before.

    Args:
        epsilon: price of all answers together.
        sensitivity: D; as for `AboveThreshold`. A threshold that follows from the data must stand
            in the value instead: D is that of their difference.
        belows: c, after how many noes it is at its end.
    """

    def __init__(
        self,
        *,
        epsilon: float,
        sensitivity: int,
        threshold: int,
        noise: SecretNoise,
        name: str,
        belows: int = 1,
    ) -> None:
        self._flipped = AboveThreshold(
            epsilon=epsilon,
            sensitivity=sensitivity,
            threshold=1 - threshold,
            noise=noise,
            name=name,
            aboves=belows,
        )
        self.epsilons, self.scales = self._flipped.epsilons, self._flipped.scales

    @property
    def ended(self) -> bool:
        """Whether it has said no as often as it may."""
        return self._flipped.ended

    def at_least(self, value: int) -> bool:
        """Returns whether the noisy value is at least the noisy threshold."""
        return not self._flipped.above(-value)

    def repeat(self, answer: bool) -> None:
        """As `AboveThreshold.repeat`."""
        self._flipped.repeat(not answer)
