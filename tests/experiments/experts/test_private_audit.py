"""Updates of DP-SGD attacked by what they move, as they are and with faults in them."""

import secrets

import numpy as np
import pytest
import torch
from torch import nn

from experiments.experts.training.private import PrivateOptimizer
from experiments.experts.training.regime import Clipping, TrainingPrivacy
from merging.arrays import Vector
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.privacy import accounting
from tests.search.privacy.auditing import proved_epsilon

pytestmark = pytest.mark.slow

UPDATES, SIGMA, CLIP, DELTA = 20_000, 1.0, 0.5, 1e-2


def moves(record: bool, noise: float, clipping: Clipping) -> Vector:
    """How far each of many updates moves the parameters along the outlier's gradient."""
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = PrivateOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        TrainingPrivacy(1e-5, noise_multiplier=SIGMA, clip=CLIP, clipping=clipping),
        noise_multiplier=noise,
        lot=1,
        seed=None,
        device=torch.device("cpu"),
    )
    places = []
    for _ in range(UPDATES):
        gradients = [[0.1, -0.2], *[[9.0, 9.0]] * record]
        vars(parameter)["grad_sample"] = torch.tensor(gradients)
        optimizer.add(torch.tensor([1, *[9] * record]))
        optimizer.finish()
        places.append(-float(parameter.detach().sum()))
        with torch.no_grad():
            parameter.zero_()
    return np.array(places)


def test_updates_prove_no_more_than_is_stated_and_prove_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = np.random.default_rng(0)

    def bits(count: int) -> int:
        return int.from_bytes(draw.bytes(count // 8), "big")

    monkeypatch.setattr(secrets, "randbits", bits)  # the secret noise, the same in every test
    stated = accounting.epsilon([GaussianMechanism(SIGMA)], DELTA, accountant="pld")

    def proved(noise: float = SIGMA, clipping: Clipping = "per_record") -> float:
        return proved_epsilon(*(moves(r, noise, clipping) for r in (True, False)), DELTA)

    assert 0.3 * stated < proved() <= stated
    assert proved(noise=SIGMA / 2) > stated
    assert proved(clipping="as_released") > stated  # clips a mean over tokens, nine times too high
