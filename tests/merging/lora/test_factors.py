"""Factor space: A and B averaged and moved apart, as released, against arithmetic on the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Layers, PerTensor, Whole
from merging.lora.factors import FactorPlan, factor_pool
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.paths.noise import GaussianNoise, LowRankNoise, Noise, RowNoise
from merging.paths.path import Path, PathPlan
from merging.plan import MergePlan, Plan, uniform_plan
from merging.plans import plan_from_description
from merging.recipe import Recipe
from merging.seeding import stable_seed
from merging.spaces.factors import FactorSpace
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from tests import builders

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
STEPS = (((0, 0.5), (1, -0.25)), ((2, 0.125),))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A tiny Llama with adapters beside it; the tests change none of them."""
    root = tmp_path_factory.mktemp("factors")
    base = builders.llama(root / "base")
    for seed, name in enumerate(("code", "prose", "maths")):
        builders.lora_adapter(root / name, base, seed=seed)
    builders.lora_adapter(root / "louder", base, seed=7, alpha=12)
    builders.lora_adapter(root / "narrow", base, rank=2, alpha=4)
    builders.lora_adapter(root / "elsewhere", base, targets=["q_proj", "down_proj"])
    builders.lora_adapter(root / "headed", base, seed=8, modules_to_save=["lm_head", "norm"])
    builders.lora_adapter(root / "whole", base, seed=9, targets=["v_proj"])
    return base


def pool_of(base: File, *names: str) -> ExpertPool:
    names = names or ("code", "prose", "maths")
    return ExpertPool.open(str(base), {name: str(base.parent / name) for name in names})


def read(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] for name in weights}


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert list(first) == list(second)
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name]), name


def files(base: File, name: str, *experts: str) -> list[tuple[Tensor, Tensor]]:
    """A and B of a tensor as the experts' files hold them, float64."""
    stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
    stored = [load_file(base.parent / expert / "adapter_model.safetensors") for expert in experts]
    return [
        (each[f"{stem}A.weight"].double(), each[f"{stem}B.weight"].double()) for each in stored
    ]


def test_start_is_the_product_of_the_averages_and_not_the_average_of_the_products(
    llama: File,
) -> None:
    pool = pool_of(llama)
    start = weighted_start(pool, [0.5, 0.3, 0.2])
    space = FactorSpace(pool, GaussianNoise(), initial=start, dtype=torch.float32)
    found = space.decode(space.first())[Q_PROJ].double()
    pairs = files(llama, Q_PROJ, *pool.expert_names)
    a = sum(w * a for w, (a, _) in zip((0.5, 0.3, 0.2), pairs, strict=True))
    b = sum(w * b for w, (_, b) in zip((0.5, 0.3, 0.2), pairs, strict=True))
    expected = pool.base[Q_PROJ].double() + 2.0 * (torch.as_tensor(b) @ torch.as_tensor(a))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    exact = start.weights(pool, dtype=torch.float32)[Q_PROJ].double()
    assert (found - exact).norm() > 0.1 * (exact - pool.base[Q_PROJ].double()).norm()


@pytest.mark.parametrize(
    "noise", [GaussianNoise(), GaussianNoise("deltas"), LowRankNoise(2), RowNoise()]
)
def test_noise_is_added_to_both_factors(llama: File, noise: Noise) -> None:
    pool = pool_of(llama)
    start = weighted_start(pool, [0.5, 0.3, 0.2])
    space = FactorSpace(pool, noise, initial=start, seed=3, dtype=torch.float32)
    found = space.decode(space.first().perturbed(4, 0.1))[Q_PROJ].double()
    factors = factor_pool(pool)
    pairs = files(llama, Q_PROJ, *pool.expert_names)
    moved = []
    for place, side in enumerate(("lora_A", "lora_B")):
        mean = sum(w * pair[place] for w, pair in zip((0.5, 0.3, 0.2), pairs, strict=True))
        draw = noise.on(f"{Q_PROJ}.{side}", factors)(stable_seed("noise", 3, 4))
        assert draw.any()
        moved.append(mean + 0.1 * draw.double())
    expected = pool.base[Q_PROJ].double() + 2.0 * (moved[1] @ moved[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


ARCHITECTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (builders.llama, {}),
    "transposed": (builders.gpt2, {"targets": ["c_attn", "c_proj"]}),
    "embedding": (builders.llama, {"targets": ["embed_tokens", "q_proj"]}),
    "rslora": (builders.llama, {"use_rslora": True, "rank": 3}),
    "ranks of layers": (builders.llama, {"rank_pattern": {"layers.1.self_attn.q_proj": 6}}),
    "whole modules": (builders.llama, {"modules_to_save": ["lm_head", "norm"]}),
    "half precision": (builders.llama, {}),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_expert_alone_is_itself_to_the_bit(tmp_path: File, kind: str) -> None:
    build, options = ARCHITECTURES[kind]
    dtype = torch.bfloat16 if kind == "half precision" else torch.float32
    base = build(tmp_path / "base", dtype=dtype)
    for seed, name in enumerate(("code", "prose")):
        builders.lora_adapter(tmp_path / name, base, seed=seed, **options)
    pool = pool_of(base, "code", "prose")
    for expert, weights in (("code", [1.0, 0.0]), ("prose", [0.0, 1.0])):
        space = FactorSpace(pool, GaussianNoise(), initial=weighted_start(pool, weights))
        assert_same(read(space.decode(space.first())), read(pool.expert_weights(expert)))


def test_whole_tensors_of_adapters_move_as_in_full_weights(llama: File) -> None:
    pool = pool_of(llama, "headed", "code")
    start = weighted_start(pool, [0.5, 0.5])
    path = Path("start", STEPS, own=(9, 0.1))
    factors = FactorSpace(pool, GaussianNoise(), initial=start, seed=1).decode(path)
    full = FullWeightSpace(pool, GaussianNoise(), initial=start, seed=1).decode(path)
    for name in ("lm_head.weight", "model.norm.weight"):
        torch.testing.assert_close(factors[name], full[name], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(factors[Q_PROJ], full[Q_PROJ])


def test_without_a_start_paths_begin_at_the_base(llama: File) -> None:
    pool = pool_of(llama)
    space = FactorSpace(pool, GaussianNoise())
    assert space.domain == {"starts": ("base",)}
    assert_same(read(space.decode(space.first())), {n: pool.base[n] for n in pool.names})
    assert FactorSpace(pool, GaussianNoise(), initial=weighted_start(pool, [1, 0, 0])).domain == {
        "starts": ("start",)
    }


def test_dimensions_are_the_entries_of_the_factors(llama: File) -> None:
    pool = pool_of(llama)
    stored = load_file(llama.parent / "code" / "adapter_model.safetensors")
    expected = sum(tensor.numel() for tensor in stored.values())
    assert FactorSpace(pool, GaussianNoise()).dimensions == expected
    headed = pool_of(llama, "headed")
    stored = load_file(llama.parent / "headed" / "adapter_model.safetensors")
    expected = sum(tensor.numel() for tensor in stored.values())
    assert FactorSpace(headed, GaussianNoise()).dimensions == expected


def test_different_scales_go_into_the_factors_b(llama: File) -> None:
    pool = pool_of(llama, "code", "louder")  # scales 2 and 3
    space = FactorSpace(pool, GaussianNoise(), initial=weighted_start(pool, [0.5, 0.5]))
    (a, b), (other_a, other_b) = files(llama, Q_PROJ, "code", "louder")
    expected = pool.base[Q_PROJ].double() + (b + 1.5 * other_b) @ ((a + other_a) / 2)
    found = space.decode(space.first())[Q_PROJ].double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_plan_and_recipe_rebuild_every_bit(
    llama: File, tmp_path: File, dtype: torch.dtype | None
) -> None:
    pool = pool_of(llama)
    start = uniform_plan(Ties(), Layers(1), pool)
    space = FactorSpace(pool, GaussianNoise("deltas"), initial=start, seed=5, dtype=dtype)
    path = space.from_json(json.loads(json.dumps(space.to_json(Path("start", STEPS, (1.0, 0.5))))))
    read(space.decode(path.moved(((7, 0.1),))))  # the centre lies elsewhere now
    decoded = read(space.decode(path))
    plan = space.plan(path)
    assert_same(read(plan.weights(pool, dtype=dtype)), decoded)
    Recipe.of(pool, plan).save(tmp_path / "recipe.json")
    recipe = Recipe.load(tmp_path / "recipe.json")
    assert recipe.plan == plan
    assert recipe.plan.name == "Ties + noise of factors"
    assert_same(read(recipe.plan.weights(recipe.open_pool(), dtype=dtype)), decoded)


def test_a_search_can_go_on_from_a_recipe_of_its_own_kind(llama: File) -> None:
    pool = pool_of(llama)
    first = FactorSpace(
        pool, GaussianNoise(), initial=weighted_start(pool, [0.5, 0.3, 0.2]), seed=1
    )
    found = first.plan(Path("start", STEPS))
    second = FactorSpace(pool, GaussianNoise(), initial=found, seed=2)
    assert_same(read(second.decode(second.first())), read(found.weights(pool)))
    moved = second.plan(second.first().perturbed(0, 0.1))
    again = plan_from_description(json.loads(json.dumps(moved.describe())))
    assert again == moved
    assert_same(read(again.weights(pool)), read(second.decode(second.first().perturbed(0, 0.1))))


def test_a_pool_in_memory_gives_the_same_bits(llama: File) -> None:
    pool = pool_of(llama)
    start = weighted_start(pool, [0.5, 0.3, 0.2])
    path = Path("start", STEPS, own=(3, 0.1))
    held = FactorSpace(pool.resident(torch.device("cpu")), RowNoise(), initial=start)
    assert_same(
        read(held.decode(path)), read(FactorSpace(pool, RowNoise(), initial=start).decode(path))
    )


def test_a_tensor_that_no_selected_expert_changes_is_the_bases(llama: File) -> None:
    pool = pool_of(llama, "code", "elsewhere").select(["code"])
    space = FactorSpace(pool, GaussianNoise(), initial=weighted_start(pool, [1.0]))
    found = space.decode(space.first().perturbed(0, 0.1))
    assert list(found) == list(pool.names)
    down = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(found[down], pool.base[down])
    assert not torch.equal(found[Q_PROJ], pool.base[Q_PROJ])
    with pytest.raises(KeyError):
        found["lm_head.weight"]


def test_a_merge_of_some_experts_is_applied_to_their_factors(llama: File) -> None:
    pool = pool_of(llama)
    knobs: dict[str, dict[str, float] | float] = {"weight": {"prose": 1.0}, "scale": 1.0}
    start = MergePlan(TaskArithmetic(), Whole(), ("prose",), {"model": knobs})
    space = FactorSpace(pool, GaussianNoise(), initial=start)
    assert_same(read(space.decode(space.first())), read(pool.expert_weights("prose")))


class TestRefusals:
    def test_whole_checkpoints(self, llama: File, tmp_path: File) -> None:
        whole = builders.llama(tmp_path / "full", like=llama, seed=5)
        pool = ExpertPool.open(
            str(llama), {"code": str(llama.parent / "code"), "full": str(whole)}
        )
        with pytest.raises(MergeError, match=r"'full' is a whole checkpoint and has no factors"):
            FactorSpace(pool, GaussianNoise())

    def test_unequal_ranks(self, llama: File) -> None:
        with pytest.raises(
            MergeError,
            match=rf"{Q_PROJ} has rank 4 in expert 'code' and rank 2 in expert 'narrow'.*"
            "choose FullWeightSpace",
        ):
            FactorSpace(pool_of(llama, "code", "narrow"), GaussianNoise())

    def test_a_tensor_that_one_expert_leaves_alone(self, llama: File) -> None:
        with pytest.raises(MergeError, match=r"'elsewhere' has no factors of .*v_proj\.weight"):
            FactorSpace(pool_of(llama, "code", "elsewhere"), GaussianNoise())

    def test_factors_in_one_expert_and_a_whole_tensor_in_another(
        self, llama: File, tmp_path: File
    ) -> None:
        saved = builders.lora_adapter(
            tmp_path / "saved", llama, targets=["v_proj"], modules_to_save=["q_proj"]
        )
        pool = ExpertPool.open(
            str(llama), {"code": str(llama.parent / "code"), "saved": str(saved)}
        )
        with pytest.raises(MergeError, match=rf"'saved' brings {Q_PROJ} as a whole tensor"):
            FactorSpace(pool, GaussianNoise())

    def test_noise_in_units_of_a_base_that_is_zero(self, llama: File) -> None:
        with pytest.raises(MergeError, match=r"set its unit to one or deltas"):
            FactorSpace(pool_of(llama), GaussianNoise("base"))

    def test_starts_that_are_no_merge_of_factors(self, llama: File) -> None:
        pool = pool_of(llama)
        path: Plan = PathPlan(None, GaussianNoise(), 0, Path())
        with pytest.raises(
            MergeError, match=r"cannot start from base \+ noise, which gives whole"
        ):
            FactorSpace(pool, GaussianNoise(), initial=path)
        by_tensor = uniform_plan(TaskArithmetic(), PerTensor(), pool)
        with pytest.raises(
            MergeError, match=r"TaskArithmetic cannot be applied to the factors.*no coefficients"
        ):
            FactorSpace(pool, GaussianNoise(), initial=by_tensor)

    def test_unknown_start_and_broken_recipe(self, llama: File) -> None:
        space = FactorSpace(pool_of(llama), GaussianNoise())
        with pytest.raises(ValueError, match="starts from 'start': the space knows base"):
            space.from_json(Path("start").to_json())
        with pytest.raises(ValueError, match="'factors' must be a plan, got None"):
            plan_from_description({"kind": "factors"})
        assert isinstance(space.plan(Path()), FactorPlan)
