"""Directions far below the strongest count, in matrices as tall as a vocabulary."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from merging.method import MergeMethod, Slot
from merging.methods.iso_c import IsoC
from merging.methods.knots import Knots
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.tsv_m import TsvM
from merging.paths.noise import SingularNoise
from merging.rules.spectral import low_rank_svd, thin_svd
from tests.merging.memory_pool import memory_pool


@cache
def embedding(condition: float) -> Tensor:
    """A delta of 151936 x 32 in float32; a drift of all rows beside directions that are weaker."""
    rng = torch.Generator().manual_seed(0)
    left = torch.randn((151936, 32), generator=rng, dtype=torch.float64)
    right = torch.randn((32, 32), generator=rng, dtype=torch.float64)
    values = torch.full((32,), 1 / condition, dtype=torch.float64)
    values[0] = 1.0
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    return ((left * values) @ right).float()


def alone(method: MergeMethod, delta: Tensor) -> Tensor:
    """Returns what the method makes of one expert at weight and scale 1, minus the base of 0."""
    knobs = {k.name: torch.ones(1 if k.per_expert else ()) for k in method.knobs}
    return method.merge(Slot("w", ("e",)), torch.zeros_like(delta), delta[None], knobs)


def off(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("condition", [60.0, 1e5])
def test_methods_keep_weak_directions(condition: float) -> None:
    delta = embedding(condition)
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    assert off(alone(IsoC(), delta), values.mean() * left @ right) < 1e-5
    weak = left[:, 1:].T  # what an expert moved beside the strongest direction
    for method in (Knots(TaskArithmetic()), TsvM()):
        merged = alone(method, delta).double()
        assert off(weak @ merged, weak @ delta.double()) < 1e-6 * condition


def test_decompositions_keep_weak_directions() -> None:
    delta = embedding(1e5)
    wide = delta[:4096].T.contiguous()
    for svd, matrix in (
        (thin_svd, delta),
        (thin_svd, wide),
        (low_rank_svd, torch.eye(400, 32) @ wide),
    ):
        left, values, right = (part.double() for part in svd(matrix))
        assert len(values) == 32
        assert off((left * values) @ right, matrix.double()) < 1e-7
        assert (left.T @ left - torch.eye(32)).abs().max() < 1e-6
        assert (right @ right.T - torch.eye(32)).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(3000, 64), (400, 300)])
def test_directions_of_rounding_are_left_out(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    for rank in (1, 7, 40):
        b = torch.randn((shape[0], rank), generator=rng, dtype=torch.float64)
        exact = b @ torch.randn((rank, shape[1]), generator=rng, dtype=torch.float64)
        for matrix in (exact, exact.float(), (exact / 3).float() + (exact * 2 / 3).float()):
            for svd in (thin_svd, low_rank_svd):
                assert len(svd(matrix)[1]) == rank


def test_singular_noise_moves_weak_directions() -> None:
    delta = embedding(60.0)
    pool = memory_pool({"w": torch.zeros_like(delta)}, [{"w": delta}])
    noise = SingularNoise().on("w", pool)(0).double()
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    core = torch.diag(left.T @ noise @ right.T) / values  # g of every direction, times a factor
    assert int((core.abs() > 0.01 * core.abs().max()).sum()) >= 28
