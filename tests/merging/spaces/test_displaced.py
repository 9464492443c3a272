"""Vector spaces that start from another point."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from merging.grouping import Whole
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import uniform_plan
from merging.plans import plan_from_description
from merging.spaces.coefficients import CoefficientSpace
from merging.spaces.displaced import DisplacedSpace
from merging.weights import Weights
from tests.merging.memory_pool import random_pool

SHAPES = {"w": (8, 9), "v": (5, 8), "bias": (6,)}


def space_of(dtype: torch.dtype | None = None) -> DisplacedSpace:
    pool = random_pool(SHAPES)
    inner = CoefficientSpace(pool, TaskArithmetic(), Whole(), start={"scale": 1.0})
    return DisplacedSpace(inner, uniform_plan(Ties(), Whole(), pool), dtype=dtype)


def same(one: Weights, other: Weights) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


def test_first_genome_is_the_start_to_the_bit() -> None:
    space = space_of(torch.float32)
    start = space.start.weights(space.pool, dtype=torch.float32)
    assert same(space.decode(space.first()), start)
    assert space.plan(space.first()) is space.start


def test_moves_are_those_of_the_inner_space() -> None:
    space = space_of(torch.float32)
    genome = space.first()
    genome[0] += 0.25
    start = space.start.weights(space.pool, dtype=torch.float64)
    moved = space.decode(genome)
    for name in SHAPES:
        expected = start[name] + 0.25 * space.pool.deltas(name)[0].double()
        torch.testing.assert_close(moved[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_plan_survives_json_and_gives_the_same_bits() -> None:
    space = space_of()
    genome = space.first() + np.linspace(-0.5, 0.5, len(space.axes))
    plan = space.plan(genome)
    again = plan_from_description(json.loads(json.dumps(plan.describe())))
    assert again == plan
    assert plan.name == "Ties + TaskArithmetic"
    assert same(again.weights(space.pool), space.decode(genome))
    assert same(space.decode(genome), space.decode(genome))
    assert space.from_json(json.loads(json.dumps(space.to_json(genome)))).tolist() == (
        genome.tolist()
    )


@pytest.mark.parametrize("value", [3, {"a": 1}])
def test_genomes_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a genome of this space is a list of numbers, got"):
        space_of().from_json(value)


def test_corners_are_the_experts() -> None:
    pool = random_pool(SHAPES)
    space = CoefficientSpace(
        pool, TaskArithmetic(), Whole(), start={"scale": 1.0, "weight": "average"}
    )
    assert space.first().tolist() == [1 / 3, 1 / 3, 1 / 3, 1.0]
    for row, (expert, corner) in enumerate(space.corners.items()):
        weights = space.decode(corner)
        assert expert == pool.expert_names[row]
        for name in SHAPES:
            expected = pool.base_tensor(name) + pool.deltas(name)[row]
            torch.testing.assert_close(weights[name], expected)
    assert CoefficientSpace(pool, Ties(), Whole()).corners == {}
    with pytest.raises(
        MergeError, match="start of weight: 'mean' is neither a number, average nor"
    ):
        CoefficientSpace(pool, TaskArithmetic(), Whole(), start={"weight": "mean"})
