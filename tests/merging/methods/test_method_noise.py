"""The noise of random methods: unbiased, of the expert, nested in the density."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from merging.method import MergeMethod, Slot
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
from tests.merging.methods.method_cases import (
    Problem,
    merge,
    name_of,
    random_knobs,
    random_problem,
)

RANDOM = [DareLinear(), DareTies(), Della(), DellaLinear()]


@pytest.mark.parametrize("cls", [DareLinear, DellaLinear, DareTies, Della])
def test_mean_over_seeds_is_the_expert(cls: type[DareLinear]) -> None:
    given = random_problem(cls(), (4, 5), 0, experts=1).but(weight=[1.0], scale=1.0, density=[0.6])
    if "epsilon" in given.knobs:
        given = given.but(epsilon=[0.3])
    runs = 600
    merged = torch.stack([merge(cls(seed=seed), given) for seed in range(runs)])
    deviation = given.deltas[0].abs() * math.sqrt((1 - 0.3) / 0.3 / runs)  # the smallest p is 0.3
    assert ((merged.mean(0) - given.base - given.deltas[0]).abs() <= 5 * deviation).all()


@pytest.mark.parametrize("method", RANDOM, ids=name_of)
def test_noise_belongs_to_expert_seed_and_tensor(method: Any) -> None:
    knobs = random_knobs(method, 3, torch.float64, 0)
    given = random_problem(method, (8, 8), 0, knobs=knobs).but(density=[0.5, 0.5, 0.5])

    def alone(index: int, slot_name: str = "w", seed: int = 0) -> Tensor:
        one = given.permuted([index])
        slot = Slot(slot_name, one.slot.experts)
        moved = Problem(slot, one.base, one.deltas, one.knobs)
        return merge(dataclasses.replace(method, seed=seed), moved) != given.base

    same = given.deltas.clone()
    same[1] = same[0]
    given = Problem(given.slot, given.base, same, given.knobs)
    assert torch.equal(alone(0), alone(0))
    assert not torch.equal(alone(0), alone(1))  # equal deltas, another expert
    assert not torch.equal(alone(0), alone(0, "v"))
    assert not torch.equal(alone(0), alone(0, seed=1))
    others_silent = given.but(weight=[1.0, 0.0, 0.0])
    assert torch.equal(
        merge(method, Problem(Slot("w", given.slot.experts), *_rest(others_silent))) != given.base,
        alone(0),
    )


def _rest(given: Problem) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return given.base, given.deltas, given.knobs


@pytest.mark.parametrize("method", RANDOM, ids=name_of)
def test_masks_are_nested_in_the_density(method: MergeMethod) -> None:
    given = random_problem(method, (8, 8), 0, experts=1).but(weight=[1.0], scale=1.0)
    kept = torch.zeros_like(given.base, dtype=torch.bool)
    for density in (0.05, 0.2, 0.5, 0.8, 0.95, 1.0):
        more = merge(method, given.but(density=[density])) != given.base
        assert (more | ~kept).all()
        kept = more
    assert kept.all()


def test_both_precisions_see_one_noise() -> None:
    given = random_problem(DareLinear(), (8, 8), 0, dtype=torch.float32)
    double = Problem(
        given.slot,
        given.base.double(),
        given.deltas.double(),
        {k: v.double() for k, v in given.knobs.items()},
    )
    torch.testing.assert_close(
        merge(DareLinear(), given).double(), merge(DareLinear(), double), atol=1e-6, rtol=1e-6
    )
