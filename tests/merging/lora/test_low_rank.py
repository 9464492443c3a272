"""Plans as a centre and low-rank differences: added up they are the plans' own weights."""

from __future__ import annotations

from pathlib import Path as File

import pytest
import torch
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Layers, Whole
from merging.lora.factors import FactorPlan, factor_pool
from merging.lora.low_rank import CentredCandidate, LowRankProduct, StackedFactors, low_rank_of
from merging.method import MergeError, MergeMethod
from merging.methods.linear import Linear
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.paths.noise import GaussianNoise, LowRankNoise
from merging.paths.path import BASE, Path, PathPlan
from merging.plan import MergePlan, Plan
from merging.spaces.factors import FactorSpace
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from tests import builders

NAMES = ("code", "prose", "elsewhere")
STEPS = (((0, 0.5), (1, -0.25)), ((2, 0.125),))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> File:
    root = tmp_path_factory.mktemp("low_rank")
    base = builders.llama(root / "base")
    for seed, name in enumerate(("code", "prose")):
        builders.lora_adapter(root / name, base, seed=seed, rank=2 + seed, alpha=5)
        builders.lora_adapter(root / f"{name}2", base, seed=seed)
    builders.lora_adapter(root / "elsewhere", base, targets=["q_proj", "down_proj"])
    builders.lora_adapter(root / "norm", base, seed=8, modules_to_save=["norm"])
    builders.lora_adapter(root / "head", base, seed=8, modules_to_save=["lm_head"])
    builders.llama(root / "whole", like=base, seed=3)
    return base


def pool_of(base: File, *names: str) -> ExpertPool:
    return ExpertPool.open(str(base), {name: str(base.parent / name) for name in names or NAMES})


def mixture(method: MergeMethod, pool: ExpertPool, scale: float | None = None) -> MergePlan:
    shared: dict[str, float] = {} if scale is None else {"scale": scale}
    tables = {}
    for i, group in enumerate(dict.fromkeys(Layers(1).assign(pool.names).values())):
        weights = {name: 0.7 - 0.4 * i - 0.2 * j for j, name in enumerate(pool.expert_names)}
        tables[group] = {"weight": weights, **shared}
    return MergePlan(method, Layers(1), pool.expert_names, tables)


def assert_same(near: CentredCandidate | None, plan: Plan, pool: ExpertPool) -> None:
    """Centre plus differences, tensor by tensor, against the plan's weights in float32."""
    assert near is not None
    expected = plan.weights(pool, dtype=torch.float32)
    assert set(near.deltas) <= set(expected)
    for name in expected:
        centre = near.centre[name] if near.centre else pool.base_tensor(name)
        delta = near.deltas.get(name, torch.zeros(()))
        whole = delta.product() if isinstance(delta, LowRankProduct) else delta
        torch.testing.assert_close(centre.float() + whole, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "scale"),
    [(Linear(), None), (TaskArithmetic(), 0.6), (TaskArithmetic(normalize=True), -1.3)],
)
def test_mixtures_of_adapters(base: File, method: MergeMethod, scale: float | None) -> None:
    pool = pool_of(base)
    plan = mixture(method, pool, scale)
    assert_same(low_rank_of(plan, StackedFactors(pool)), plan, pool)


def test_mixtures_share_their_factors(base: File) -> None:
    pool = pool_of(base)
    stacks = StackedFactors(pool)
    one = low_rank_of(mixture(TaskArithmetic(), pool, 0.2), stacks)
    other = low_rank_of(mixture(TaskArithmetic(), pool, 0.9), stacks)
    assert one is not None
    assert other is not None
    for name, delta in one.deltas.items():
        same = other.deltas[name]
        assert isinstance(delta, LowRankProduct)
        assert isinstance(same, LowRankProduct)
        assert delta.a is same.a
        assert delta.b is same.b
        assert not torch.equal(mix(delta), mix(same))
    assert one.key == other.key


def mix(delta: LowRankProduct) -> Tensor:
    assert delta.mix is not None
    return delta.mix


def test_some_of_the_experts(base: File) -> None:
    pool = pool_of(base)
    weights = {"code": 0.5, "elsewhere": -2.0}
    plan = MergePlan(
        TaskArithmetic(), Whole(), tuple(weights), {"model": {"weight": weights, "scale": 0.5}}
    )
    assert_same(low_rank_of(plan, StackedFactors(pool)), plan, pool)


def test_vectors_that_adapters_bring_are_whole_and_matrices_are_refused(base: File) -> None:
    pool = pool_of(base, "code", "norm")
    plan = mixture(TaskArithmetic(), pool, 0.5)
    near = low_rank_of(plan, StackedFactors(pool))
    assert_same(near, plan, pool)
    assert near is not None
    assert isinstance(near.deltas["model.norm.weight"], Tensor)
    headed = pool_of(base, "code", "head")
    assert low_rank_of(mixture(TaskArithmetic(), headed, 0.5), StackedFactors(headed)) is None


def test_transposed_layers_and_embeddings(tmp_path: File) -> None:
    root = builders.gpt2(tmp_path / "gpt2")
    builders.lora_adapter(tmp_path / "wide", root, targets=["c_attn", "wpe"], seed=1)
    pool = ExpertPool.open(str(root), {"wide": str(tmp_path / "wide")})
    plan = mixture(TaskArithmetic(), pool, 0.7)
    assert_same(low_rank_of(plan, StackedFactors(pool)), plan, pool)


def test_other_merges_have_no_such_form(base: File) -> None:
    pool = pool_of(base)
    stacks = StackedFactors(pool)
    assert low_rank_of(mixture(Linear(normalize=False), pool), stacks) is None
    ties = MergePlan(Ties(), Whole(), pool.expert_names, {"model": {}})
    assert low_rank_of(ties, stacks) is None
    mixed = pool_of(base, "code", "whole")
    assert low_rank_of(mixture(TaskArithmetic(), mixed, 0.5), StackedFactors(mixed)) is None
    noise = PathPlan(None, GaussianNoise(), 0, Path(BASE, STEPS, own=(3, 0.5)))
    assert low_rank_of(noise, stacks) is None
    centre = PathPlan(None, LowRankNoise(2), 0, Path(BASE, STEPS))
    assert low_rank_of(centre, stacks) is None


def test_errors_are_those_of_the_plan(base: File) -> None:
    pool = pool_of(base, "code", "prose")
    weights = {"code": 1.0, "prose": -1.0}
    plan = MergePlan(Linear(), Whole(), pool.expert_names, {"model": {"weight": weights}})
    with pytest.raises(MergeError, match=r"the weights \[.*\] of tensor .* sum to zero"):
        low_rank_of(plan, StackedFactors(pool))


@pytest.mark.parametrize("unit", ["one", "base", "deltas"])
def test_low_rank_noise_around_a_centre(base: File, unit: str) -> None:
    pool = pool_of(base, "code", "whole")
    noise = LowRankNoise(2, unit)  # type: ignore[arg-type]
    space = FullWeightSpace(pool, noise, initial=weighted_start(pool, [0.5, 0.5]), seed=4)
    stacks, centre = StackedFactors(pool), space.first().moved(STEPS[0]).moved(STEPS[1])
    keys = []
    for number in (7, 8):
        genome = centre.perturbed(number, 0.3)
        plan = space.plan(genome)
        near = low_rank_of(plan, stacks, space.decode(genome))
        assert_same(near, plan, pool)
        assert_same(low_rank_of(plan, stacks), plan, pool)
        assert near is not None
        keys.append(near.key)
        assert len(near.deltas) == len(pool.names)
    assert keys[0] == keys[1]
    elsewhere = low_rank_of(space.plan(space.first().perturbed(7, 0.3)), stacks)
    assert elsewhere is not None
    assert elsewhere.key != keys[0]


def test_factor_space(base: File) -> None:
    pool = pool_of(base, "code2", "prose2")
    start = weighted_start(pool, [0.5, 0.3])
    space = FactorSpace(pool, GaussianNoise("deltas"), initial=start, seed=4, dtype=torch.float32)
    genome = space.first().moved(STEPS[0]).perturbed(5, 0.2)
    plan = space.plan(genome)
    assert_same(low_rank_of(plan, StackedFactors(pool), space.decode(genome)), plan, pool)
    assert_same(low_rank_of(plan, StackedFactors(pool)), plan, pool)
    merge = FactorPlan(mixture(TaskArithmetic(), factor_pool(pool), 0.4))
    assert_same(low_rank_of(merge, StackedFactors(pool)), merge, pool)
