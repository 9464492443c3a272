"""Released statistics attacked by their values, as they are and with faults in them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluators.requests import EvaluationError
from experiments.gathering.items import Item
from experiments.gathering.private import PrivateStatistics
from merging.arrays import Vector
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.privacy import accounting
from merging.statistics_files import StatisticsKind
from search.privacy.private_noise import Integers, SecretNoise
from tests.search.privacy.auditing import proved_epsilon

pytestmark = pytest.mark.slow

RUNS, SIGMA, DELTA = 6_000, 1.0, 1e-2
SHAPES = {"a": (2, 2), "b": (2, 2)}
OUTLIER, OTHER, UNREADABLE = (
    Item({"x": torch.tensor(9.0)}),
    Item({"x": torch.tensor(0.1)}),
    Item({}),
)


class Unclipped(PrivateStatistics):
    """A planted fault: no clip."""

    def _bound(self, tensor: Tensor, kind: StatisticsKind) -> float:
        return 1.0

    def whole(self, part: Tensor, kind: StatisticsKind, tensors: int) -> Tensor:
        norm = float(torch.linalg.vector_norm(part))
        return (norm * super().whole(part / norm, kind, tensors)).long()


def statistics(items: Sequence[Item]) -> Mapping[str, Tensor]:
    """``x x^T`` of an input along the diagonal, the same of both layers."""
    if not items[0].inputs:
        raise EvaluationError("cannot be read")
    return {name: float(items[0].inputs["x"]) * torch.ones(2, 2) for name in SHAPES}


def outputs(mechanism: PrivateStatistics, kind: StatisticsKind, last: Item) -> Vector:
    """What all entries sum to, along the outlier's direction."""
    units = [[OTHER], [last]]
    found = (mechanism.release(units, statistics, kind, SHAPES, secret=run) for run in range(RUNS))
    return np.array([sum(float(each.sum()) for each in released.values()) for released in found])


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_statistics_prove_no_more_than_is_stated_and_prove_a_fault(
    kind: StatisticsKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = accounting.epsilon([GaussianMechanism(SIGMA)], DELTA, accountant="pld")

    def proved(cls: type[PrivateStatistics]) -> float:
        mechanism = cls("d", clip=0.5, noise_multiplier=SIGMA)
        with_it, without = (outputs(mechanism, kind, last) for last in (OUTLIER, UNREADABLE))
        return proved_epsilon(with_it, without, DELTA)

    assert 0.3 * stated < proved(PrivateStatistics) <= stated
    assert proved(Unclipped) > stated
    drawn = SecretNoise.gaussian

    def halved(noise: SecretNoise, count: int, *question: str | int) -> Integers:
        return drawn(noise, count, *question) // 2

    monkeypatch.setattr(SecretNoise, "gaussian", halved)
    assert proved(PrivateStatistics) > stated
