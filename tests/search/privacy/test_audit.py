"""Every mechanism of a private search attacked by its outputs, as it is and with faults in it."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from merging.arrays import Vector
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.privacy import accounting
from search.privacy.private_fitness import ClippedSum, noisy_differences, noisy_means
from search.privacy.private_noise import Integers, SecretNoise
from search.privacy.private_svt import AboveThreshold, BelowThreshold
from tests.search.privacy.auditing import proved_epsilon

pytestmark = pytest.mark.slow

RUNS = 10_000
DELTA = 1e-2
SIGMA, CLIP = 1.0, 0.5
OTHERS = [0.2, -0.4]
OUTLIER = 5.0
"""An item's contribution, ten times the clip."""


class Halved(SecretNoise):
    """A planted fault: half of the noise."""

    def gaussian(self, count: int, *question: str | int) -> Integers:
        return super().gaussian(count, *question) // 2

    def laplace(self, scale: int, *question: str | int) -> int:
        return super().laplace(scale, *question) // 2


class Unclipped(ClippedSum):
    """A planted fault: no clip."""

    def sum(self, contributions: Vector) -> int:
        return int(np.rint(contributions / self.unit).sum())


FAULTS = [(ClippedSum, SecretNoise), (ClippedSum, Halved), (Unclipped, SecretNoise)]
Fault = tuple[type[ClippedSum], type[SecretNoise]]
Outputs = Callable[[Fault, Sequence[float], int], float]


def key(run: int) -> bytes:
    return run.to_bytes(16, "big")


def means(fault: Fault, items: Sequence[float], run: int) -> float:
    """Two candidates of one generation, each with noise for two."""
    one = fault[0](CLIP, SIGMA * 2**0.5, fault[1](key(run)))
    found = noisy_means([[np.array(items)]] * 2, [1.0], one, ("step",))
    return float(sum(found)[0])


def difference(fault: Fault, items: Sequence[float], run: int) -> float:
    one = fault[0](CLIP, SIGMA, fault[1](key(run)))
    pair = np.array(items), np.zeros(len(items))
    return noisy_differences([pair], 1.0, one, ("step",))[0][0]


def sampled_difference(fault: Fault, items: Sequence[float], run: int) -> float:
    noise = SecretNoise(key(run))
    return difference(fault, [x for i, x in enumerate(items) if noise.uniform(i) < 0.3], run)


def reading(fault: Fault, items: Sequence[float], run: int) -> float:
    one = fault[0](CLIP, 1.0, fault[1](key(run)))
    return one.reading(np.array(items), 1.0, "genome")


def above_threshold(fault: Fault, items: Sequence[float], run: int) -> float:
    """Whether "no, no, yes" is the answer to what the outlier makes "yes, yes, no"."""
    one = fault[0](CLIP, 1.0, fault[1](key(run)))
    svt = AboveThreshold(
        epsilon=2.0, sensitivity=one.part, threshold=0, noise=one.noise, name="audit"
    )
    with_it, without = one.sum(np.array(items)), one.sum(np.array(OTHERS))
    changed = with_it - without
    answers = []
    for value in (changed - one.part // 2,) * 2 + (one.part // 2 - changed,):
        answers.append(svt.above(value))
        if svt.ended:
            break
    return float(answers == [False, False, True])


def below_threshold(fault: Fault, items: Sequence[float], run: int) -> float:
    """The same with the noes counted: whether "yes, yes, no" is the answer."""
    one = fault[0](CLIP, 1.0, fault[1](key(run)))
    svt = BelowThreshold(
        epsilon=2.0, sensitivity=one.part, threshold=0, noise=one.noise, name="audit"
    )
    changed = one.sum(np.array(items)) - one.sum(np.array(OTHERS))
    answers = []
    for value in (changed - one.part // 2,) * 2 + (one.part // 2 - changed,):
        answers.append(svt.at_least(value))
        if svt.ended:
            break
    return float(answers == [True, True, False])


GAUSSIAN = accounting.epsilon([GaussianMechanism(SIGMA)], DELTA, accountant="pld")
SAMPLED = accounting.epsilon([GaussianMechanism(SIGMA, 0.3)], DELTA, accountant="pld")


@pytest.mark.parametrize(
    ("mechanism", "stated", "delta"),
    [
        (means, GAUSSIAN, DELTA),
        (difference, GAUSSIAN, DELTA),
        (sampled_difference, SAMPLED, DELTA),
        (reading, 1.0, 0.0),
        (above_threshold, 2.0, 0.0),
        (below_threshold, 2.0, 0.0),
    ],
)
def test_outputs_prove_no_more_than_is_stated_and_prove_a_fault(
    mechanism: Outputs, stated: float, delta: float
) -> None:
    proved = []
    for fault in FAULTS:
        with_it, without = (
            np.array([mechanism(fault, items, run) for run in range(RUNS)])
            for items in ([*OTHERS, OUTLIER], OTHERS)
        )
        proved.append(proved_epsilon(with_it, without, delta))
    sound, halved, unclipped = proved
    assert 0.3 * stated < sound <= stated
    assert halved > stated
    assert unclipped > stated
