"""The sparse vector technique as the paper's public code has it, for comparison: not private.

Faults that are kept: the threshold's noise is drawn once per process, so that all targets but the
first are compared with the plain threshold; continuous noise in floating point.
"""

import numpy as np


class PublishedSvt:
    """Says of several targets, one after the other, whether utilities reach a threshold.

    ``eps_1 = eps / (1 + (2c)^(2/3))``, ``eps_2 = eps - eps_1``; threshold noise
    ``Lap(2 / (n eps_1))``, noise of every question ``Lap(4c / (n eps_2))``: twice what Lyu, Su and
    Li ask of a utility that one item moves by 1 / n.

    Args:
        epsilon: the stated price for each target.
        items: n, of the validation data.
        failures: c, the noes that a target may get.
        seed: of the noise.
    """

    def __init__(self, *, epsilon: float, items: int, failures: int, seed: int) -> None:
        first = epsilon / (1 + (2 * failures) ** (2 / 3))
        self.scales = 2 / (items * first), 4 * failures / (items * (epsilon - first))
        """Of the threshold's noise, and of every question's."""
        self._failures, self._random = failures, np.random.default_rng(seed)
        self._drawn = False
        self._left, self._threshold = 0, 0.0

    def start(self, threshold: float) -> None:
        """Begins with the next target."""
        noise = 0.0 if self._drawn else self._random.laplace(scale=self.scales[0])
        self._threshold, self._drawn, self._left = threshold + noise, True, self._failures

    @property
    def ended(self) -> bool:
        """Whether the target got as many noes as it may."""
        return self._left == 0

    def at_least(self, utility: float) -> bool:
        """Returns whether the noisy utility reaches the threshold of the target."""
        if self.ended:
            raise RuntimeError("all failures are spent, or no target was started")
        answer = bool(utility + self._random.laplace(scale=self.scales[1]) >= self._threshold)
        self._left -= not answer
        return answer
