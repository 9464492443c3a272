"""What the tests of mergekit files share: names, and references in float64."""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from merging.mergekit_yaml.reading import MergekitJob

LAYERS = 5
EXPERTS = ("code", "prose", "maths")
Run: TypeAlias = Callable[[str], MergekitJob]
States: TypeAlias = Mapping[str, Mapping[str, Tensor]]


def sphere(a: Tensor, b: Tensor, t: float) -> Tensor:
    cos = float((a * b).sum() / (a.norm() * b.norm()))
    angle = math.acos(max(-1.0, min(1.0, cos)))
    if math.sin(angle) < 1e-6:
        return (1 - t) * a + t * b
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def largest(delta: Tensor, count: int) -> Tensor:
    flat = delta.flatten()
    kept = torch.zeros_like(flat)
    order = flat.abs().argsort(descending=True)[:count]
    kept[order] = flat[order]
    return kept.reshape(delta.shape)


def consensus(shares: list[Tensor], weights: list[float], *, normalize: bool) -> Tensor:
    sign = sum(shares, torch.zeros(())).sign()
    total, mass = torch.zeros_like(shares[0]), torch.zeros_like(shares[0])
    for share, weight in zip(shares, weights, strict=True):
        agrees = (share.sign() == sign) & (share != 0)
        total += share * agrees
        mass += weight * agrees
    return total / torch.where(mass == 0, 1, mass) if normalize else total


def assert_equals(
    job: MergekitJob, expected: Callable[[str], Tensor], tolerance: float = 3e-6
) -> None:
    """Every merged tensor of the file is what `expected` computes from its name."""
    weights = job.plan.weights(job.pool, dtype=job.dtype)
    assert len(weights) == 9 * LAYERS + 3
    for name, tensor in weights.items():
        wanted = expected(name)
        torch.testing.assert_close(tensor.double(), wanted, atol=tolerance, rtol=tolerance)
