"""Lineages: replayed to the same bits wherever and whenever, from a recipe and without memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Layers
from merging.lineages import slices
from merging.lineages.crossover import (
    ArithmeticCrossover,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import (
    Crossed,
    Founder,
    Lineage,
    Mutated,
    ancestry,
    canonical,
    founders,
    lineage_from_json,
    lineage_to_json,
)
from merging.lineages.mutation import LowRankMutation, ScaleMutation, SignMutation
from merging.lineages.replay import LineagePlan
from merging.mergekit_yaml.spelling import MergekitError
from merging.mergekit_yaml.writing import to_mergekit
from merging.method import MergeError
from merging.methods.ties import Ties
from merging.plan import uniform_plan
from merging.plans import plan_from_description
from merging.recipe import Recipe, RecipeError
from merging.spaces.full_weights import weighted_start
from merging.spaces.lineage import LineageSpace
from tests import builders
from tests.merging.lineages.breeding import (
    BASE,
    START,
    A,
    B,
    C,
    bred_population,
    digest,
    offspring,
)
from tests.merging.lineages.naive_lineage import Vectors, naive
from tests.merging.memory_pool import memory_pool, random_pool
from tests.merging.paths.test_full_weights import LiveBytes

SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (5, 3),
    "layers.0.w": (4, 6),
    "layers.1.w": (3, 2, 2),
    "norm": (7,),
    "scale": (),
}


def thousandths(least: float, most: float) -> st.SearchStrategy[float]:
    """Numbers whose products stay within what float32 resolves."""
    return st.floats(least, most).map(lambda number: round(number, 3))


weights = thousandths(-0.5, 1.5)
shares = st.floats(0, 1)
seeds = st.integers(0, 2**63)
cuts = st.lists(shares, min_size=1, max_size=3).map(tuple)
crossovers = st.one_of(
    st.builds(UniformCrossover, seeds, shares),
    st.builds(PointCrossover, cuts, st.sampled_from(["vector", "layers"])),
    st.builds(TensorCrossover, seeds, shares),
    st.builds(ArithmeticCrossover, weights),
    st.builds(SlerpCrossover, weights),
    st.builds(SplitSlerpCrossover, shares, weights),
)
mutations = st.one_of(
    st.builds(ScaleMutation, thousandths(-1.5, 1.5)),
    st.builds(LowRankMutation, seeds, st.integers(1, 3), thousandths(0, 1)),
    st.builds(SignMutation, seeds, shares),
)


@st.composite
def lineages(draw: st.DrawFn, most: int = 12) -> Lineage:
    """An individual whose ancestors are shared at random."""
    found: list[Lineage] = [A, B, C, START, BASE]
    for by in draw(st.lists(st.one_of(crossovers, mutations), min_size=1, max_size=most)):
        chosen = [found[-1 - draw(st.integers(0, len(found) - 1))] for _ in range(2)]
        if isinstance(by, ScaleMutation | LowRankMutation | SignMutation):
            found.append(Mutated(chosen[0], by))
        else:
            found.append(Crossed(chosen[0], chosen[1], by))
    return found[-1]


def space_of(pool: ExpertPool, **options: Any) -> LineageSpace:
    return LineageSpace(pool, initial=weighted_start(pool, [0.5, 0.25, -0.5]), **options)


def read(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in weights}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name]), name


def founders_of(pool: ExpertPool) -> dict[str, Vectors]:
    """Task vectors in float64."""
    vectors: dict[str, Vectors] = {
        expert: {name: pool.deltas(name)[i].double().numpy() for name in pool.names}
        for i, expert in enumerate(pool.expert_names)
    }
    a, b, c = vectors.values()
    vectors["start"] = {n: 0.5 * a[n] + 0.25 * b[n] - 0.5 * c[n] for n in pool.names}
    vectors["base"] = {name: np.zeros(pool.base.shape(name)) for name in pool.names}
    return vectors


@settings(max_examples=150, deadline=None)
@given(lineages(), st.sampled_from([8, 65536]))
def test_any_lineage_is_what_plain_recursion_makes_of_it(lineage: Lineage, block: int) -> None:
    pool = random_pool(SHAPES, scale=1.0)
    expected = naive(lineage, founders_of(pool), block)
    largest = max(float(np.abs(array).max()) for array in expected.values())
    assume(largest < 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "BLOCK_ENTRIES", block)
        space = space_of(pool)
        found = read(space.decode(lineage))
        assert_same(found, read(space.plan(lineage).weights(pool)))
        assert_same(found, read(space.decode(space.canonical(lineage))))
    for name, tensor in found.items():
        moved = tensor.double().numpy() - pool.base_tensor(name).double().numpy()
        np.testing.assert_allclose(moved, expected[name], rtol=1e-3, atol=1e-4 * (1 + largest))


@settings(max_examples=60, deadline=None)
@given(st.lists(lineages(8), min_size=1, max_size=4))
def test_what_was_decoded_before_changes_no_bit(history: list[Lineage]) -> None:
    pool = random_pool(SHAPES)
    used = space_of(pool)
    child = Crossed(history[0], history[-1], SlerpCrossover(0.3))
    for lineage in [*history, child, *reversed(history)]:
        assert_same(read(used.decode(lineage)), read(space_of(pool).decode(lineage)))


@settings(max_examples=100, deadline=None)
@given(lineages())
def test_json_is_exact_and_holds_shared_ancestors_once(lineage: Lineage) -> None:
    value = json.loads(json.dumps(lineage_to_json(lineage)))
    again = lineage_from_json(value)
    assert again == lineage
    assert hash(again) == hash(lineage)
    assert lineage_to_json(again) == value
    assert len(value["nodes"]) == len(ancestry(lineage)) == len(set(ancestry(lineage)))
    for ours, theirs in zip(ancestry(lineage), ancestry(again), strict=True):
        if not isinstance(ours, Founder) and not isinstance(theirs, Founder):
            assert ours.by == theirs.by


def test_time_grows_with_ancestors_not_with_branches_or_recursion() -> None:
    pool = random_pool({"w": (2, 3)})
    deep: Lineage = A
    for number in range(3000):
        deep = Mutated(deep, SignMutation(number, 0.5))
    doubled: Lineage = Crossed(A, B, UniformCrossover(0))
    for number in range(200):  # 2 ** 200 branches
        doubled = Crossed(
            doubled, Mutated(doubled, ScaleMutation(-0.9)), SlerpCrossover(number / 200)
        )
    space = LineageSpace(pool)
    for lineage in (deep, doubled):
        assert space.from_json(space.to_json(lineage)) == lineage
        assert canonical(lineage) == space.canonical(canonical(lineage))
        assert torch.isfinite(space.decode(lineage)["w"]).all()
    assert "SignMutation" in repr(deep)
    assert len(repr(deep)) < 100


def test_operators_that_change_nothing_have_no_place_in_the_canonical_lineage() -> None:
    x = Crossed(A, B, UniformCrossover(1))
    for same in (
        Mutated(x, ScaleMutation(1)),
        Mutated(x, LowRankMutation(1, 1, 0)),
        Crossed(x, A, ArithmeticCrossover(1)),
        Crossed(x, x, SlerpCrossover(0.3)),
        Crossed(
            Mutated(x, ScaleMutation(1)),
            Crossed(B, x, PointCrossover((0.0,))),
            UniformCrossover(3),
        ),
    ):
        assert canonical(same) == x
    assert canonical(Mutated(Mutated(BASE, ScaleMutation(2)), SignMutation(1, 0.5))) == BASE
    outer = Mutated(
        Crossed(Mutated(A, ScaleMutation(1)), B, UniformCrossover(1)), ScaleMutation(2)
    )
    assert canonical(outer) == Mutated(x, ScaleMutation(2)) != outer
    assert canonical(Mutated(x, ScaleMutation(2))) == Mutated(x, ScaleMutation(2))


def test_founders_are_experts_start_and_base() -> None:
    pool = random_pool(SHAPES, dtype=torch.bfloat16)
    assert LineageSpace(pool).domain == {"founders": ("expert0", "expert1", "expert2")}
    assert LineageSpace(pool).first() == A
    space = space_of(pool, base=True)
    assert space.domain == {"founders": ("expert0", "expert1", "expert2", "start", "base")}
    assert space.first() == START
    assert space.dimensions == sum(pool.base_tensor(name).numel() for name in pool.names)
    assert_same(
        read(space.decode(BASE)), {name: pool.base_tensor(name).clone() for name in pool.names}
    )
    for dtype in (None, torch.float32):
        space = space_of(pool, dtype=dtype)
        assert space.initial is not None
        expected = read(space.initial.weights(pool, dtype=dtype))
        assert_same(read(space.decode(START)), expected)
        assert_same(read(space.decode(Crossed(START, A, ArithmeticCrossover(1)))), expected)
        for founder in (BASE, A, START):  # what is read belongs to the reader
            before = space.decode(founder)["embed"]
            space.decode(founder)["embed"].zero_()
            assert torch.equal(space.decode(founder)["embed"], before)


def test_unknown_founders_are_refused() -> None:
    pool = random_pool(SHAPES)
    space = LineageSpace(pool)
    message = (
        "descends from 'ties', which is no founder here: expected expert0, expert1, expert2, "
    )
    for call in (space.plan, space.decode):
        with pytest.raises(MergeError, match=message + "base"):
            call(Crossed(A, Founder("ties"), UniformCrossover(1)))
    with pytest.raises(MergeError, match="descends from 'start'"):
        space.from_json(space.to_json(START))
    with pytest.raises(MergeError, match="descends from 'ties'"):
        LineagePlan(None, Founder("ties")).weights(pool)
    with pytest.raises(KeyError):
        space.decode(A)["nothing"]
    named = ExpertPool(
        pool.base,
        {"start": next(iter(pool.experts.values()))},
        pool.names,
        (),
        torch.device("cpu"),
        pool.base,
    )
    with pytest.raises(MergeError, match="an expert is named 'start', and so is another founder"):
        LineageSpace(named)


def test_experts_that_no_ancestor_descends_from_are_not_read() -> None:
    shapes = {"layers.0.w": (3, 4), "layers.1.w": (3, 4)}
    pool = random_pool(shapes)
    experts = {name: pool.experts[name] for name in ("expert0", "expert1")}

    class Refusing:
        sha256, source = "x", "y"

        def fill(self, name: str, base: Tensor, out: Tensor) -> None:
            raise AssertionError("read")

    broken: Any = {**experts, "expert2": Refusing()}
    pool = ExpertPool(pool.base, broken, pool.names, (), torch.device("cpu"), pool.base)
    read(LineageSpace(pool).decode(Crossed(A, B, UniformCrossover(1))))
    half = LineageSpace(pool).decode(Crossed(A, C, PointCrossover((0.5,), "layers")))
    assert half["layers.0.w"].any()
    with pytest.raises(AssertionError, match="read"):
        half["layers.1.w"]


ELSEWHERE = """
import torch
from merging.spaces.lineage import LineageSpace
from tests.merging.lineages.breeding import A, B, C, bred_population, digest
from tests.merging.memory_pool import random_pool
torch.set_num_threads(2)
pool = random_pool(SHAPES)
population = bred_population(6, 3, [A, B, C])[::-1]
print(*[digest(LineageSpace(pool).decode(each)) for each in population])
"""


def test_another_process_with_other_threads_and_hash_seed_breeds_the_same_bits() -> None:
    shapes = {**SHAPES, "layers.1.big": (300, 700)}
    space = LineageSpace(random_pool(shapes))
    here = [digest(space.decode(each)) for each in bred_population(6, 3, [A, B, C])]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE.replace("SHAPES", repr(shapes))],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == here[::-1]


@pytest.mark.parametrize("started", [True, False])
def test_a_population_of_32_takes_less_than_three_models(started: bool) -> None:
    pool = random_pool({f"layers.{i}.w": (16, 32) for i in range(24)})
    model = 4 * sum(pool.base_tensor(name).numel() for name in pool.names)
    with LiveBytes() as memory:
        resident = {name: torch.empty_like(pool.base_tensor(name)) for name in pool.names}
        space = space_of(pool) if started else LineageSpace(pool)
        population = bred_population(32, 2, [A, B, C, *([START] if started else [])])
        candidates = [space.decode(each) for each in population]
        for candidate in candidates:
            for name in candidate:
                resident[name].copy_(candidate[name])
    least = 2 if started else 1  # the resident model, and the start where there is one
    assert least * model < memory.peak < (least + 0.6) * model, memory.peak / model


def test_a_large_tensor_takes_a_few_blocks_beside_the_founders() -> None:
    pool = random_pool({"w": (2000, 1000)}, experts=2)
    lineage: Lineage = Crossed(A, B, UniformCrossover(1))
    for number in range(8):
        other = Mutated(lineage, LowRankMutation(number, 2, 0.1))
        lineage = Crossed(
            lineage, other, SlerpCrossover(0.5) if number % 2 else UniformCrossover(number)
        )
    space = LineageSpace(pool)
    with LiveBytes() as memory:
        space.decode(lineage)["w"]
    tensor = 4 * 2_000_000
    assert memory.peak < (2 + 1 + 0.5) * tensor, memory.peak / tensor  # deltas, result, blocks


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> File:
    root = tmp_path_factory.mktemp("experts")
    builders.llama(root / "base", dtype=torch.bfloat16)
    builders.experts_of(root / "base", 2)
    for seed in range(2):
        builders.lora_adapter(root / f"lora{seed}", root / "base", seed=seed)
    return root


def open_pool(files: File, kind: str) -> ExpertPool:
    names = {"whole": ("base-code", "base-prose"), "lora": ("lora0", "lora1")}[kind]
    experts = {f"expert{i}": str(files / name) for i, name in enumerate(names)}
    return ExpertPool.open(str(files / "base"), experts)


def many_generations(individuals: int) -> Lineage:
    """One lineage of at least so many individuals, all of them ancestors of the last."""
    rng = np.random.default_rng(2)
    population: list[Lineage] = [
        Crossed(Crossed(A, B, SlerpCrossover(0.4)), START, UniformCrossover(0))
    ]
    while len(ancestry(population[-1])) < individuals:
        population.append(offspring(population[-6:], rng))
        population.append(
            Crossed(population[-2], population[-1], UniformCrossover(len(population)))
        )
    return population[-1]


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_recipe_rebuilds_to_the_bit(files: File, tmp_path: File, kind: str) -> None:
    pool = open_pool(files, kind)
    space = LineageSpace(pool, initial=uniform_plan(Ties(), Layers(1), pool))
    lineage = many_generations(40)
    read(space.decode(lineage.parents[0]))
    plan = space.plan(lineage)
    Recipe.of(pool, plan).save(tmp_path / "recipe.json")
    loaded = Recipe.load(tmp_path / "recipe.json")
    assert loaded.plan == plan
    rebuilt = loaded.plan.weights(loaded.open_pool(), dtype=loaded.torch_dtype)
    assert_same(read(space.decode(lineage)), read(rebuilt))
    assert set(rebuilt) == set(pool.names)
    assert all(not torch.equal(rebuilt[name], pool.base_tensor(name)) for name in pool.names)
    assert set(founders(lineage)) == {"expert0", "expert1", "start"}
    assert "Ties" in plan.name


def test_recipe_of_six_hundred_individuals_stays_small(files: File, tmp_path: File) -> None:
    pool = open_pool(files, "whole")
    start = weighted_start(pool, [0.75, 0.25])
    plan = LineagePlan(start, many_generations(600))
    Recipe.of(pool, plan).save(tmp_path / "recipe.json")
    assert (tmp_path / "recipe.json").stat().st_size < 60_000
    assert Recipe.load(tmp_path / "recipe.json").plan == plan


def test_names_and_descriptions() -> None:
    start = weighted_start(random_pool(SHAPES), [1, 0, 0])
    many: Lineage = Founder("e0")
    for number in range(1, 6):
        many = Crossed(many, Founder(f"e{number}"), UniformCrossover(number))
    assert LineagePlan(None, many).name == "lineage of 6 founders"
    assert founders(many) == ("e0", "e1", "e2", "e3", "e4", "e5")
    plan = LineagePlan(start, Crossed(START, BASE, ArithmeticCrossover(0.1)))
    assert plan_from_description(json.loads(json.dumps(plan.describe()))) == plan
    nested = LineagePlan(plan, Mutated(START, ScaleMutation(2)))
    assert plan_from_description(json.loads(json.dumps(nested.describe()))) == nested


def test_mergekit_has_nothing_for_a_lineage(files: File) -> None:
    pool = open_pool(files, "whole")
    recipe = Recipe.of(pool, LineagePlan(None, Crossed(A, B, UniformCrossover(1))))
    with pytest.raises(MergekitError, match="mergekit has nothing for 'lineage of expert0"):
        to_mergekit(recipe, pool)


GOOD = lineage_to_json(Mutated(Crossed(A, B, UniformCrossover(1)), ScaleMutation(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lineage": None}, "lineage: expected an object with operators and nodes, got None"),
        ({"lineage": {"nodes": []}}, "lineage: 'operators' must be a list, got None"),
        ({"lineage": {**GOOD, "nodes": 3}}, "lineage: 'nodes' must be a list, got 3"),
        ({"lineage": {**GOOD, "nodes": []}}, "'nodes' is empty: the last node is the individual"),
        (
            {"lineage": {**GOOD, "operators": ["Uniform"]}},
            r"must be \[path, fields ...\], got 'Un",
        ),
        ({"lineage": {**GOOD, "operators": [[]]}}, r"must be \[path, fields ...\], got \[\]"),
        ({"nodes": ["a", 3]}, r"a node must be a name or \[operator, .* got 3"),
        ({"nodes": ["a", [0, [], 1, 0.5]]}, "a node must be a name or "),
        ({"nodes": ["a", [0, [0, 0, 0], 1, 0.5]]}, "a node must be a name or "),
        (
            {"nodes": ["a", [0, [0, 1], 1, 0.5]]},
            "node 1, .* names an operator or a parent that do",
        ),
        ({"nodes": ["a", [0, [0, -1], 1, 0.5]]}, "names an operator or a parent that does not"),
        ({"nodes": ["a", [2, [0, 0], 1, 0.5]]}, "names an operator or a parent that does not"),
        (
            {"nodes": ["a", [0, [0, 0], 1]]},
            r"UniformCrossover has seed, share, node \[0, .* has other numb",
        ),
        ({"nodes": ["a", [0, [0, 0], 1, 7]]}, r"share must hold fractions in \[0, 1\], got 7"),
        (
            {"nodes": ["a", [0, [0], 1, 0.5]]},
            "'merging.lineages.crossover.UniformCrossover' is no mutation",
        ),
        (
            {"nodes": ["a", [1, [0, 0], 2]]},
            "'merging.lineages.mutation.ScaleMutation' is no crossover",
        ),
        (
            {"operators": [["os.system", "seed", "share"], *GOOD["operators"][1:]]},
            "is no crossover",
        ),
        (
            {"operators": [["nowhere.X", "seed", "share"], GOOD["operators"][1]]},
            "cannot be imported",
        ),
        ({"operators": [[GOOD["operators"][0][0], "a", "b"], GOOD["operators"][1]]}, "'a'"),
        ({"start": 3}, "recipe: 'start' must be a plan, got 3"),
        ({"lineage": lineage_to_json(START)}, "descends from 'start', but 'start' is null"),
    ],
)
def test_broken_descriptions_are_refused(change: dict[str, Any], message: str) -> None:
    parts = {key: value for key, value in change.items() if key in GOOD}
    whole = {key: value for key, value in change.items() if key not in GOOD}
    description = {"kind": "lineage", "start": None, "lineage": {**GOOD, **parts}, **whole}
    with pytest.raises(ValueError, match=message):
        plan_from_description(description)
    content = {
        "format": 1,
        "base": {"source": "b", "sha256": "0"},
        "experts": {},
        **description,
    }
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(content)


def test_experts_as_adapters_leave_what_none_touches_alone() -> None:
    deltas = [{"w": torch.ones(2, 2), "v": torch.zeros(2, 2)} for _ in range(2)]
    pool = memory_pool({"w": torch.ones(2, 2), "v": torch.ones(2, 2)}, deltas)
    lineage = Mutated(Crossed(A, B, SlerpCrossover(0.3)), LowRankMutation(1, 1, 0.5))
    assert torch.equal(LineageSpace(pool).decode(lineage)["v"], torch.ones(2, 2))
