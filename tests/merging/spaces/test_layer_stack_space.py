"""The layer-stack space: axes, start, canonical genomes, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import uniform_plan
from merging.plans import plan_from_description
from merging.spaces.axes import Axis, Choice, Real
from merging.spaces.coefficients import CoefficientSpace
from merging.spaces.layer_stack import LayerStackSpace
from merging.stacks.layer_stack import BASE, MERGED, LayerStackPlan, StackedLayer
from tests import builders

LAYERS = 4
INNER = partial(CoefficientSpace, method=TaskArithmetic(), grouping=Whole())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    base = builders.llama(tmp_path_factory.mktemp("space") / "base", num_hidden_layers=LAYERS)
    return ExpertPool.open(str(base), builders.experts_of(base, 2, 0.1))


def places(plan: LayerStackPlan) -> list[tuple[int, str, float]]:
    return [(place.layer, place.source, place.scale) for place in plan.places]


def named(space: LayerStackSpace, **values: float) -> Vector:
    """The start with other values on some axes; ``layer_0`` stands for ``layer/0``."""
    genome = space.first()
    names = [axis.name for axis in space.axes]
    for name, value in values.items():
        genome[names.index(name.replace("_", "/"))] = value
    return genome


def draw(data: st.DataObject, axes: tuple[Axis, ...]) -> Vector:
    return np.array(
        [
            data.draw(st.integers(0, len(axis.options) - 1))
            if isinstance(axis, Choice)
            else data.draw(
                st.sampled_from([max(axis.low, -1.0), 1.0])
                | st.floats(max(axis.low, -1), min(axis.high, 2))
            )
            for axis in axes
        ],
        np.float64,
    )


def test_axes_are_a_layer_a_source_and_a_scale_for_every_place(pool: ExpertPool) -> None:
    space = LayerStackSpace(pool, depth=2)
    sources = (BASE, "code", "prose", "skip")
    assert space.axes == (
        Choice("layer/0", ("0", "1", "2", "3"), 0),
        Choice("source/0", sources, 0),
        Real("scale/0", 0.0, 2.0, 1.0, 0.2),
        Choice("layer/1", ("0", "1", "2", "3"), 2),
        Choice("source/1", sources, 0),
        Real("scale/1", 0.0, 2.0, 1.0, 0.2),
        Choice("outer", (BASE, "code", "prose"), 0),
    )
    assert space.dimensions == 7
    assert space.domain == {"axes": space.axes, "corners": {}}


def test_what_leaves_no_choice_has_no_axis(pool: ExpertPool) -> None:
    space = LayerStackSpace(pool, experts=False, skip=False, scaling=False)
    assert [axis.name for axis in space.axes] == [f"layer/{i}" for i in range(LAYERS)]
    space = LayerStackSpace(pool, reach=0, skip=False, scaling=False)
    assert [axis.name for axis in space.axes] == [f"source/{i}" for i in range(LAYERS)] + ["outer"]
    space = LayerStackSpace(pool, reach=1, scaling=False)
    assert [
        a.options for a in space.axes if a.name.startswith("layer") and isinstance(a, Choice)
    ] == [
        ("0", "1"),
        ("0", "1", "2"),
        ("1", "2", "3"),
        ("2", "3"),
    ]


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, [(i, BASE, 1.0) for i in range(LAYERS)]),
        ({"base": False}, [(i, "code", 1.0) for i in range(LAYERS)]),
        ({"coefficients": INNER}, [(i, MERGED, 1.0) for i in range(LAYERS)]),
        ({"depth": 2}, [(0, BASE, 1.0), (2, BASE, 1.0)]),
        (
            {"depth": 6, "scaling": False, "skip": False},
            [(i, BASE, 1.0) for i in (0, 0, 1, 2, 2, 3)],
        ),
        (
            {"depth": 6, "skip": False},
            [(n, BASE, s) for n, s in [(0, 1), (0, 0), (1, 1), (2, 1), (0, 0), (3, 1)]],
        ),
    ],
)
def test_the_start_is_a_whole_model(
    pool: ExpertPool, options: dict[str, Any], start: list[tuple[int, str, float]]
) -> None:
    space = LayerStackSpace(pool, **options)
    assert places(space.plan(space.first())) == start


def test_a_deeper_start_computes_what_the_base_computes(pool: ExpertPool) -> None:
    space = LayerStackSpace(pool, depth=6)
    plan = space.plan(space.first())
    kept = [place for place in plan.places if place.scale]
    assert kept == [StackedLayer(i, BASE) for i in range(LAYERS)]


def test_a_genome_is_read_place_by_place(pool: ExpertPool) -> None:
    space = LayerStackSpace(pool, depth=3)
    genome = named(space, layer_0=3, source_0=2, scale_0=0.25, source_1=3, scale_2=0, outer=1)
    plan = space.plan(genome)
    assert places(plan) == [(3, "prose", 0.25), (0, BASE, 0.0), (0, BASE, 0.0)]
    assert (plan.outer, plan.merged) == ("code", None)


def test_coefficients_are_searched_as_well(pool: ExpertPool) -> None:
    space = LayerStackSpace(pool, depth=1, coefficients=INNER, experts=False)
    names = ["layer/0", "source/0", "scale/0"]
    inner = [f"merged/{axis.name}" for axis in INNER(pool).axes]
    assert [axis.name for axis in space.axes] == names + inner
    genome = space.first()
    genome[-len(inner) :] = np.arange(len(inner)) / 8
    plan = space.plan(genome)
    assert plan.merged == INNER(pool).plan(np.arange(len(inner)) / 8)
    assert plan.outer == MERGED
    whole = INNER(pool).decode(np.arange(len(inner)) / 8)
    for name, tensor in space.decode(genome).items():
        assert torch.equal(tensor, whole[name]), name


def test_an_initial_point_is_a_source_or_moves_the_merge(pool: ExpertPool) -> None:
    plan = uniform_plan(TaskArithmetic(), Whole(), pool)
    alone = LayerStackSpace(pool, initial=plan)
    wanted = plan.weights(pool)
    for space in (alone, LayerStackSpace(pool, initial=plan, coefficients=INNER)):
        found = space.decode(space.first())
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    moved = LayerStackSpace(pool, initial=plan, coefficients=INNER)
    genome = moved.first()
    genome[-1] += 0.5
    assert not torch.equal(moved.decode(genome)["lm_head.weight"], wanted["lm_head.weight"])
    description = json.loads(json.dumps(moved.plan(genome).describe()))
    assert plan_from_description(description) == moved.plan(genome)


def test_an_initial_point_of_another_depth_is_refused(pool: ExpertPool) -> None:
    deep = LayerStackPlan((StackedLayer(0, BASE),) * 5)
    space = LayerStackSpace(pool, initial=deep)
    with pytest.raises(MergeError, match="is a stack of 5 layers itself"):
        space.decode(space.first())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_canonical_genomes_decode_to_the_same_bits(pool: ExpertPool, data: st.DataObject) -> None:
    bounds = data.draw(st.sampled_from([(0.0, 2.0), (-1.0, 2.0), (0.5, 1.5)]))
    space = LayerStackSpace(
        pool,
        depth=data.draw(st.integers(1, 5)),
        skip=data.draw(st.booleans()),
        scaling=data.draw(st.booleans()),
        reach=data.draw(st.sampled_from([None, 0, 1])),
        coefficients=data.draw(st.sampled_from([None, INNER])),
        bounds=bounds,
    )
    genome = draw(data, space.axes)
    canonical = space.canonical(genome)
    assert space.plan(canonical) == space.plan(genome)
    assert np.array_equal(space.canonical(canonical), canonical)
    again = space.from_json(json.loads(json.dumps(space.to_json(genome))))
    assert np.array_equal(again, genome)
    plan = space.plan(genome)
    assert plan_from_description(json.loads(json.dumps(plan.describe()))) == plan
    one, other = space.decode(genome), plan.weights(pool)
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        assert torch.equal(one[name], other[name])


def test_skipped_places_that_differ_are_one(pool: ExpertPool) -> None:
    space = LayerStackSpace(pool)
    genomes = [
        named(space, source_1=3),
        named(space, source_1=3, layer_1=2, scale_1=1.5),
        named(space, source_1=1, layer_1=3, scale_1=0),
    ]
    wanted = named(space, source_1=3, layer_1=0, scale_1=0)
    for genome in genomes:
        assert np.array_equal(space.canonical(genome), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth 0: a model needs at least one layer"),
        ({"reach": -1}, "reach -1: it must be a number of layers"),
        ({"bounds": [0.0]}, r"bounds of the scale: expected \[low, high\] around 1, got \[0.0\]"),
        ({"bounds": [1.5, 2]}, "expected .* around 1"),
        ({"bounds": [0, float("inf")]}, "expected .* around 1"),
        ({"step": 0}, "step of the scale: 0 is no step"),
        ({"experts": False, "base": False}, "the layer stack has no source"),
        (
            {"experts": False, "scaling": False, "skip": False, "reach": 0},
            "the layer stack leaves nothing to search",
        ),
    ],
)
def test_senseless_options_are_refused(
    pool: ExpertPool, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        LayerStackSpace(pool, **options)


def test_architectures_without_known_outputs_are_refused(tmp_path: Path) -> None:
    base = builders.bert_classifier(tmp_path / "base", kind="encoder")
    heads = builders.bert_classifier(tmp_path / "a", like=base, seed=1)
    pool = ExpertPool.open(str(base), {"a": str(heads)})
    kinds: list[dict[str, Any]] = [{}, {"scaling": False}, {"skip": False}]
    for options in kinds:
        with pytest.raises(MergeError, match=r"layers of bert .* set scaling and skip to false"):
            LayerStackSpace(pool, **options)
    space = LayerStackSpace(pool, scaling=False, skip=False)
    assert isinstance(space.plan(space.first()), LayerStackPlan)
    with pytest.raises(MergeError, match="classifiers keep the depth"):
        LayerStackSpace(pool, depth=1, scaling=False, skip=False).decode(np.zeros(3))
