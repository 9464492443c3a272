"""Full-weight space: equal genomes give equal bits, from the held centre and from a recipe."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Layers, Whole
from merging.mergekit_yaml.spelling import MergekitError
from merging.mergekit_yaml.writing import to_mergekit
from merging.method import MergeError
from merging.methods.ties import Ties
from merging.paths.noise import (
    BlockNoise,
    GaussianNoise,
    LowRankNoise,
    Noise,
    RowNoise,
    SingularNoise,
    StagedNoise,
    TensorNoise,
)
from merging.paths.path import Path, PathPlan, Walk
from merging.paths.singular_pairs import SingularPairNoise
from merging.plan import Plan, uniform_plan
from merging.plans import plan_from_description
from merging.recipe import Recipe, RecipeError
from merging.seeding import stable_seed
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from merging.weights import InPlaceWeights
from tests import builders
from tests.merging.memory_pool import memory_pool, random_pool

SHAPES = {"w": (7, 9), "v": (7, 9), "bias": (5,)}
KINDS: list[Noise] = [GaussianNoise(), LowRankNoise(2), RowNoise(), BlockNoise(7), SingularNoise()]
STEPS = (((0, 0.5), (1, -0.25)), ((2, 0.125), (3, 1 / 3)), ((4, -0.7),), ())


def name_of(noise: object) -> str:
    return type(noise).__name__


def space_of(pool: ExpertPool, noise: Noise | None = None, **options: Any) -> FullWeightSpace:
    start: Plan = weighted_start(pool, [0.5, 0.25, 0.25])
    return FullWeightSpace(pool, noise or GaussianNoise(), initial=start, **options)


def read(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in weights}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("noise", KINDS, ids=name_of)
def test_a_path_is_the_sum_it_says(noise: Noise) -> None:
    pool = random_pool(SHAPES)
    path = Path("start", STEPS, (1.0, 0.5, 0.25), (9, 0.1))
    weights = space_of(pool, noise, seed=3).decode(path)
    totals = {0: 0.5 * 1.75, 1: -0.25 * 1.75, 2: 0.125 * 1.75, 3: 1.75 / 3, 4: -0.7 * 1.5, 9: 0.1}
    for name in pool.names:
        draw = noise.on(name, pool)
        expected = pool.base_tensor(name).double() + sum(
            w * d.double() for w, d in zip((0.5, 0.25, 0.25), pool.deltas(name), strict=True)
        )
        for number, total in totals.items():
            expected += total * draw(stable_seed("noise", 3, number)).double()
        torch.testing.assert_close(weights[name].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_path_without_steps_is_its_start() -> None:
    pool = random_pool(SHAPES, dtype=torch.bfloat16)
    space = space_of(pool)
    assert space.initial is not None
    start = space.initial.weights(pool)
    assert_same(read(space.decode(Path("start"))), read(start))
    base = space.decode(Path())
    assert_same(read(base), {name: pool.base_tensor(name) for name in pool.names})
    base["w"].zero_()
    assert pool.base_tensor("w").any()


@pytest.mark.parametrize("noise", KINDS, ids=name_of)
@pytest.mark.parametrize("blend", [(1.0,), (1.0, 0.5), (1.0, 0.9, 0.81, 0.729)], ids=len)
def test_held_centre_and_walk_from_the_start_agree_to_the_bit(
    noise: Noise, blend: tuple[float, ...]
) -> None:
    pool = random_pool(SHAPES)
    space = space_of(pool, noise)
    for length in range(len(STEPS) + 1):
        centre = Path("start", STEPS[:length], blend)
        for path in (centre, centre.perturbed(20 + length, 0.1), centre.perturbed(7, -0.1)):
            alone = PathPlan(space.initial, noise, 0, path).weights(pool)
            assert_same(read(space.decode(path)), read(alone))


terms = st.tuples(st.integers(0, 6), st.floats(-1, 1, allow_nan=False))
steps = st.lists(st.lists(terms, max_size=3).map(tuple), max_size=4).map(tuple)
paths = st.builds(
    Path,
    start=st.sampled_from(["base", "start"]),
    steps=steps,
    blend=st.sampled_from([(1.0,), (1.0, 0.5)]),
    own=st.none() | terms,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(paths, min_size=1, max_size=5))
def test_what_was_decoded_before_changes_no_bit(history: list[Path]) -> None:
    pool = random_pool({"w": (3, 4)})
    used = space_of(pool)
    for path in [*history, *reversed(history)]:
        assert_same(read(used.decode(path)), read(space_of(pool).decode(path)))
        assert Path.from_json(json.loads(json.dumps(path.to_json()))) == path


@pytest.mark.parametrize("noise", KINDS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_written_in_place_they_are_those_that_are_read(noise: Noise, dtype: torch.dtype) -> None:
    pool = random_pool(SHAPES)
    for path in (Path("start", STEPS), Path("start", STEPS, own=(8, 0.1))):
        weights = space_of(pool, noise).decode(path)
        assert isinstance(weights, InPlaceWeights)
        for name in weights:
            out = torch.full(weights.shape(name), torch.nan, dtype=dtype)
            weights.write(name, out)
            assert torch.equal(out, weights[name].to(dtype)), name


def test_weights_decoded_before_the_centre_moved_on_still_hold() -> None:
    space = space_of(random_pool(SHAPES))
    early = space.decode(Path("start", STEPS[:1], own=(8, 0.1)))
    before = read(early)
    read(space.decode(Path("start", STEPS)))
    assert_same(read(early), before)


def test_a_step_that_is_given_up_does_not_make_the_start_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space, begun = space_of(random_pool(SHAPES)), list[str]()
    original = Walk._write_start

    def counted(walk: Walk, name: str, start: str, out: Tensor) -> None:
        begun.append(name)
        original(walk, name, start, out)

    monkeypatch.setattr(Walk, "_write_start", counted)
    centre = Path("start")
    for number in range(3):
        samples = [centre.perturbed(number, 0.1), centre.perturbed(number, -0.1)]
        tried = [centre, centre.moved(((number, 0.3),)), centre.moved(((number, 0.1),))]
        for path in [*samples, *tried]:
            read(space.decode(path))
        centre = tried[number % len(tried)]
    assert sorted(begun) == sorted(SHAPES)


def test_an_error_half_way_leaves_no_half_step() -> None:
    pool = random_pool(SHAPES)

    class Failing(GaussianNoise):
        left = 10**9

        def on(self, name: str, pool: ExpertPool) -> Any:
            draw = super().on(name, pool)

            def counted(seed: int, out: Tensor | None = None) -> Tensor:
                if Failing.left == 0:
                    raise torch.OutOfMemoryError("no memory")
                Failing.left -= 1
                return draw(seed, out)

            return counted

    for left in range(3):
        space = space_of(pool, Failing())
        path = Path("start", STEPS)
        Failing.left = 10**9
        read(space.decode(Path("start", STEPS[:1])))
        Failing.left = left
        with pytest.raises(torch.OutOfMemoryError):
            space.decode(path)["w"]
        Failing.left = 10**9
        assert_same(read(space.decode(path)), read(space_of(pool).decode(path)))


def test_run_seed_number_and_tensor_decide_the_noise() -> None:
    pool = random_pool(SHAPES)
    zero = memory_pool(
        {n: torch.zeros(s) for n, s in SHAPES.items()},
        [{n: pool.deltas(n)[0] for n in SHAPES}],
    )

    def noise(seed: int, number: int) -> dict[str, Tensor]:
        return read(
            FullWeightSpace(zero, GaussianNoise(), seed=seed).decode(Path(own=(number, 1)))
        )

    first = noise(0, 0)
    assert_same(first, noise(0, 0))
    assert not torch.equal(first["w"], first["v"])
    for other in (noise(1, 0), noise(0, 1)):
        assert not torch.equal(first["w"], other["w"])


def test_unknown_starts_are_refused() -> None:
    pool = random_pool(SHAPES)
    with pytest.raises(ValueError, match="starts from 'ties': the space knows base, start"):
        space_of(pool).decode(Path("ties"))
    with pytest.raises(MergeError, match="2 weights for 3 experts: give one per expert"):
        weighted_start(pool, [0.5, 0.5])
    with pytest.raises(KeyError):
        space_of(pool).decode(Path())["nothing"]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages made since it was entered and still alive; and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, list[int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and not any(tensor is each for each in args):
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        entry = self.live.setdefault(storage.data_ptr(), [0, storage.nbytes()])
        entry[0] += 1
        if entry[0] == 1:
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._drop, storage.data_ptr())

    def _drop(self, pointer: int) -> None:
        entry = self.live[pointer]
        entry[0] -= 1
        if entry[0] == 0:
            self.now -= entry[1]
            del self.live[pointer]


@pytest.mark.parametrize(
    "noise",
    [
        GaussianNoise(),
        RowNoise(),
        TensorNoise(),
        SingularPairNoise(4),
        StagedNoise(TensorNoise(whole=True), 16, TensorNoise()),
    ],
    ids=name_of,
)
def test_a_population_of_32_takes_the_memory_of_two_models(noise: Noise) -> None:
    pool = random_pool({f"layer.{i}.w": (16, 32) for i in range(80)})
    model = 4 * sum(pool.base_tensor(name).numel() for name in pool.names)
    blend = (1.0, 0.5)
    with LiveBytes() as memory:
        resident = {name: torch.empty_like(pool.base_tensor(name)) for name in pool.names}
        space = space_of(pool, noise)
        centre, candidates = Path("start", blend=blend), []
        for numbers in (range(32), range(32, 34)):  # the second generation moves the centre
            tried = centre.moved(tuple((n, 0.1) for n in numbers))  # and given up
            candidates = [space.decode(centre.perturbed(n, 0.1)) for n in numbers]
            for weights in [*candidates, space.decode(tried), candidates[0]]:
                for name in weights:
                    resident[name].copy_(weights[name])
            centre = centre.moved(tuple((n, 0.01) for n in numbers))
    assert 1.9 * model < memory.peak <= 2.2 * model, memory.peak / model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> File:
    root = tmp_path_factory.mktemp("experts")
    builders.llama(root / "base", dtype=torch.bfloat16)
    builders.experts_of(root / "base", 2)
    for seed in range(2):
        builders.lora_adapter(root / f"lora{seed}", root / "base", seed=seed)
    return root


def open_pool(files: File, kind: str) -> ExpertPool:
    whole = {name: str(files / f"base-{name}") for name in ("code", "prose")}
    lora = {f"lora{i}": str(files / f"lora{i}") for i in range(2)}
    return ExpertPool.open(str(files / "base"), whole if kind == "whole" else lora)


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_the_size_of_noise_is_found_once_and_no_delta_is_kept(
    files: File, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(files, kind).resident(torch.device("cpu"))
    draw = GaussianNoise("deltas").on(pool.names[0], pool)
    rms = pool.deltas(pool.names[0]).double().square().mean().sqrt()
    drawn, plain = draw(1), GaussianNoise("one").on(pool.names[0], pool)(1)
    torch.testing.assert_close(drawn, plain * float(rms))
    assert pool._cache is not None
    assert pool._cache.held_bytes == 0

    def refuse(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(ExpertPool, "deltas", refuse)
    assert torch.equal(GaussianNoise("deltas").on(pool.names[0], pool)(1), drawn)


def long_path(start: str, generations: int, samples: int) -> Path:
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(generations, samples)) / 7
    steps = tuple(
        tuple((samples * t + i, float(term)) for i, term in enumerate(row))
        for t, row in enumerate(terms)
    )
    return Path(start, steps, own=(samples * generations, 0.1))


@pytest.mark.parametrize("kind", ["whole", "lora"])
@pytest.mark.parametrize("noise", [LowRankNoise(2, "base"), RowNoise()], ids=name_of)
def test_recipe_rebuilds_to_the_bit(files: File, tmp_path: File, kind: str, noise: Noise) -> None:
    pool = open_pool(files, kind)
    space = FullWeightSpace(pool, noise, initial=uniform_plan(Ties(), Layers(1), pool), seed=5)
    path = long_path("start", 3, 4)
    read(space.decode(path.centre))
    plan = space.plan(path)
    Recipe.of(pool, plan).save(tmp_path / "recipe.json")
    loaded = Recipe.load(tmp_path / "recipe.json")
    assert loaded.plan == plan
    rebuilt = loaded.plan.weights(loaded.open_pool(), dtype=loaded.torch_dtype)
    assert_same(read(space.decode(path)), read(rebuilt))
    assert set(rebuilt) == set(pool.names)
    moved = sum(not torch.equal(rebuilt[n], pool.base_tensor(n)) for n in pool.names)
    assert moved == len(pool.names)
    if kind == "lora":
        assert all("q_proj" in name or "v_proj" in name for name in rebuilt)


def test_recipe_of_fifty_generations_of_ten_stays_small(files: File, tmp_path: File) -> None:
    pool = open_pool(files, "whole")
    start = weighted_start(pool, [0.75, 0.25])
    plan = PathPlan(start, GaussianNoise(), 0, long_path("start", 50, 10))
    Recipe.of(pool, plan).save(tmp_path / "recipe.json")
    assert (tmp_path / "recipe.json").stat().st_size < 30_000
    assert Recipe.load(tmp_path / "recipe.json").plan == plan


def test_a_path_may_start_where_another_ended(files: File) -> None:
    pool = open_pool(files, "whole")
    first = PathPlan(None, GaussianNoise("deltas"), 1, Path(own=(0, 0.1)))
    space = FullWeightSpace(pool, LowRankNoise(1, "deltas"), initial=first, seed=2)
    plan = space.plan(Path("start", (((0, 0.2),),)))
    assert plan.name == "base + noise + noise"
    again = plan_from_description(json.loads(json.dumps(plan.describe())))
    assert again == plan
    assert_same(read(space.decode(plan.path)), read(again.weights(pool)))


def test_mergekit_has_nothing_for_a_path(files: File) -> None:
    pool = open_pool(files, "whole")
    recipe = Recipe.of(pool, PathPlan(None, GaussianNoise(), 0, Path(own=(0, 0.1))))
    with pytest.raises(MergekitError, match=r"mergekit has nothing for 'base \+ noise': keep"):
        to_mergekit(recipe, pool)


GOOD = PathPlan(None, GaussianNoise(), 0, Path("base", STEPS, own=(3, 0.5))).describe()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "tree"}, "kind 'tree' is unknown: rebuild it with the version"),
        ({"start": "ties"}, "'start' must be a plan or null, got 'ties'"),
        ({"noise": None}, "'noise' must be a dict, got None"),
        ({"seed": "x"}, "'seed' must be a int, got 'x'"),
        ({"path": {}}, "path: 'start' is missing"),
        ({"path": {**GOOD["path"], "start": "start"}}, "starts from 'start', which does not fit"),
        ({"path": {**GOOD["path"], "steps": 3}}, "path: 'steps' must be a list, got 3"),
        ({"path": {**GOOD["path"], "steps": [[[1]]]}}, r"'steps' must hold \[noise number, coeff"),
        ({"path": {**GOOD["path"], "own": [1, "x"]}}, "'own' must hold .* got .1, 'x'."),
        ({"path": {**GOOD["path"], "own": [1.5, 1]}}, "'own' must hold "),
        ({"path": {**GOOD["path"], "blend": [float("inf")]}}, "'blend' must hold finite numbers"),
    ],
)
def test_broken_descriptions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from_description({**GOOD, **change})
    content = {
        "format": 1,
        "base": {"source": "b", "sha256": "0"},
        "experts": {},
        **GOOD,
        **change,
    }
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(content)


def test_walk_reads_no_deltas_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = random_pool(SHAPES)

    def refuse(self: ExpertPool, name: str) -> Tensor:
        raise AssertionError("read")

    monkeypatch.setattr(ExpertPool, "deltas", refuse)
    assert Walk(pool, None, RowNoise(), 0).tensor("w", Path()).shape == (7, 9)


def test_uniform_plan_and_whole_grouping_make_starts_too() -> None:
    pool = random_pool(SHAPES)
    space = FullWeightSpace(pool, GaussianNoise(), initial=uniform_plan(Ties(), Whole(), pool))
    assert space.plan(Path("start")).describe()["start"]["kind"] == "coefficients"


def test_json_of_a_genome_is_read_back_and_checked() -> None:
    space = space_of(random_pool(SHAPES))
    path = Path("start", (((0, 0.1), (3, -0.2)),), own=(7, 1 / 3))
    assert space.from_json(json.loads(json.dumps(space.to_json(path)))) == path
    assert space.first() == Path("start")
    assert FullWeightSpace(space.pool, GaussianNoise()).first() == Path("base")
    assert space.dimensions == sum(math.prod(shape) for shape in SHAPES.values())
    with pytest.raises(ValueError, match="is a path, got 3"):
        space.from_json(3)
    with pytest.raises(ValueError, match="starts from 'ties'"):
        space.from_json(Path("ties").to_json())
