"""The knobs of the start's own method: the start itself, coarse points, and finer ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeMethod
from merging.methods.linear import Linear
from merging.methods.sce import Sce
from merging.methods.ties import Ties
from merging.plan import MergePlan, Plan, uniform_plan
from merging.plans import plan_from_description
from merging.spaces.around import AroundPlan
from merging.spaces.own_knobs import OwnKnobSpace
from tests import builders


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    base = builders.llama(tmp_path_factory.mktemp("own") / "base", num_hidden_layers=4)
    return ExpertPool.open(str(base), builders.experts_of(base, 3))


def same_bits(pool: ExpertPool, one: Plan, other: Plan) -> bool:
    first, second = one.weights(pool), other.weights(pool)
    return all(torch.equal(first[name], second[name]) for name in pool.names)


@pytest.mark.parametrize("method", [Ties(), Linear(), Sce()], ids=lambda each: type(each).__name__)
def test_first_genome_is_the_start_and_others_are_not(
    pool: ExpertPool, method: MergeMethod
) -> None:
    start = uniform_plan(method, Whole(), pool)
    space = OwnKnobSpace(pool, initial=start, parts=(1, 2))
    assert same_bits(pool, space.plan(space.first()), start)
    moved = space.first() + 0.1 * np.arange(1, 1 + space.dimensions) / space.dimensions
    assert not same_bits(pool, space.plan(moved), start)
    knobs = {axis.name.partition("/")[0] for axis in space.axes}
    own = {knob.name for knob in method.knobs}
    assert knobs == (
        own if "weight" in own else {"start", "weight"}
    )  # Sce has no weight per expert


def test_a_point_of_a_coarse_stage_is_the_merge_of_the_whole_model(pool: ExpertPool) -> None:
    space = OwnKnobSpace(pool, initial=uniform_plan(Ties(), Whole(), pool), parts=(1, 2, 4))
    assert [1 + max(ties) for ties in space.stages.values()] == [7, 3 * 7, 5 * 7]
    coarse = np.array([1.2, 0.7, -0.1, 0.4, 0.5, 0.6, 1.1])  # weights, densities, scale
    names = pool.expert_names
    knobs = {
        "weight": dict(zip(names, coarse[:3].tolist(), strict=True)),
        "density": dict(zip(names, coarse[3:6].tolist(), strict=True)),
        "scale": float(coarse[6]),
    }
    whole = MergePlan(Ties(), Whole(), names, {"model": knobs})
    first, second, third = (np.array(ties) for ties in space.stages.values())
    assert same_bits(pool, space.plan(coarse[first]), whole)
    assert sorted(third) == list(range(space.dimensions))
    for finer, coarser in ((third, second), (second, first)):  # what is one stays one
        assert all(len(set(coarser[finer == i])) == 1 for i in set(finer))


def test_stages_that_say_the_same_are_one(pool: ExpertPool) -> None:
    space = OwnKnobSpace(pool, parts=(1, 4, 8))
    assert list(space.stages) == ["the whole model", "4 blocks of layers"]
    for parts in ((), (2, 1), (0, 1)):
        with pytest.raises(ValueError, match=r"space.parts must be ascending from 1"):
            OwnKnobSpace(pool, parts=parts)


def test_around_a_start_without_weights_its_change_and_the_experts_are_scaled(
    pool: ExpertPool,
) -> None:
    start = uniform_plan(Sce(), Whole(), pool)
    space = OwnKnobSpace(pool, initial=start, parts=(1, 2))
    blocks = 3
    genome = np.tile([0.5, 0.1, -0.2, 0.3], blocks)
    genome[-4] = 2.0
    plan = space.plan(genome)
    assert isinstance(plan, AroundPlan)
    again = plan_from_description(json.loads(json.dumps(plan.describe())))
    assert same_bits(pool, again, plan)
    moved, merge, base = space.decode(genome), start.weights(pool), pool.base_weights()
    last = next(axis.name.split("/")[1] for axis in reversed(space.axes))
    groups = plan.there.grouping.assign(pool.names)
    for name in pool.names:
        change = (2.0 if groups[name] == last else 0.5) * (merge[name] - base[name])
        sums = torch.tensordot(torch.tensor([0.1, -0.2, 0.3]), pool.deltas(name), 1)
        torch.testing.assert_close(moved[name], base[name] + change + sums, rtol=1e-4, atol=1e-6)
