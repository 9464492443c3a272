"""The privacy budget of a search: what its steps cost together, known before each of them."""

import math
from collections import Counter
from collections.abc import Sequence

from merging.checkpoints.mechanisms import DiscreteGaussianMechanism, PureEpsilon
from merging.privacy import accounting

STOP = "privacy budget"
"""Why a search ends that cannot afford its next generation."""

_FARTHEST = 128
"""Generations to look ahead at once."""


class StepBudget:
    """Counts generations before they are asked, and refuses the first that costs too much.

    A generation in which one item changes r noisy numbers is one Gaussian mechanism with the
    multiplier ``noise_multiplier / sqrt(r)`` on one Poisson sample. What is spent follows from
    the generations alone, those of earlier sessions included, so that nothing has to be stored
    and a step that is repeated after a crash is not paid twice.

    Args:
        epsilon: what the search may cost in all.
        noise_multiplier: sigma of one number.
        rate: probability of every item to be in a generation's sample; 1: all are.
        reserved: mechanisms that the end of the search will need, paid for from the start.

    Raises:
        ValueError: not even one step and what is reserved can be afforded; says what helps.
    """

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float,
        noise_multiplier: float,
        rate: float = 1.0,
        reserved: Sequence[PureEpsilon] = (),
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self._noise_multiplier = noise_multiplier
        self._rate = rate
        self._reserved = tuple(reserved)
        self._steps: Counter[int] = Counter()
        self._ahead: tuple[int, int] = 0, 0  # so many more generations of so many are affordable
        if (least := self._cost(Counter({1: 1}))) > epsilon:
            raise ValueError(
                f"privacy.epsilon={epsilon:g} does not pay for one step, which costs {least:.4g} "
                "with what the end of the search needs: raise noise_multiplier or epsilon"
            )

    def before(self, releases: int) -> str | None:
        """Counts a generation that is about to be asked; `STOP` where it cannot be afforded.

        Args:
            releases: how many noisy numbers one item can change in it; 0: none, which is free.
        """
        if releases == 0:
            return None
        counted, ahead = self._ahead
        if counted != releases or ahead == 0:
            ahead = self._look_ahead(releases)
        if ahead == 0:
            return STOP
        self._ahead = releases, ahead - 1
        self._steps[releases] += 1
        return None

    def _look_ahead(self, releases: int) -> int:
        """Returns how many more generations can be afforded, at least as many as this says.

        The accountant takes its time, and what many cost bounds what few cost.
        """
        affordable, more = 0, 1
        while more <= _FARTHEST:
            if self._cost(self._steps + Counter({releases: more})) > self.epsilon:
                break
            affordable, more = more, 2 * more
        return affordable

    @property
    def mechanisms(self) -> tuple[DiscreteGaussianMechanism, ...]:
        """What has been counted."""
        return self._gaussians(self._steps)

    @property
    def steps(self) -> int:
        """How many generations have been counted."""
        return self._steps.total()

    @property
    def spent(self) -> float:
        """Epsilon of what has been counted, together with what is reserved."""
        return self._cost(self._steps)

    def _gaussians(self, steps: Counter[int]) -> tuple[DiscreteGaussianMechanism, ...]:
        return tuple(  # sigma / sqrt(r): one item changes r numbers by at most C each
            DiscreteGaussianMechanism(
                self._noise_multiplier / math.sqrt(releases), self._rate, count
            )
            for releases, count in sorted(steps.items())
        )

    def _cost(self, steps: Counter[int]) -> float:
        return accounting.epsilon([*self._gaussians(steps), *self._reserved], self.delta)
