"""Merging in blocks: the same bits whatever their length and what is cached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluators.engine.resident import Resident
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.streamed import StreamedWeights
from merging.grouping import Whole
from merging.method import MergeError, MergeMethod
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.linear import Linear
from merging.methods.ties import Ties
from merging.plan import MergePlan, uniform_plan
from merging.rules import blocks
from merging.rules.blocks import RuledMethod
from merging.rules.cache import ExpertTensor, ParameterStack, TensorCache
from merging.rules.knobs import stacked
from merging.weights import InPlaceWeights
from tests import builders
from tests.merging.methods.method_cases import METHODS, name_of, random_knobs, random_problem

CPU = torch.device("cpu")
RULED = [method for method in METHODS if blocks.merges_by_rule(method)]
MORE = [Ties(majority="count"), Ties(normalize=False), Linear(normalize=False)]
PLENTY = 2**30


def whole_experts(
    count: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    cache: TensorCache | None = None,
) -> ParameterStack:
    """A base and experts near it; many deltas are equal, many are 0."""
    noise = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=noise).to(dtype)
    rows = []
    for number in range(count):
        steps = torch.randn(shape, generator=noise).mul_(2).round_().mul_(0.0625)
        own = (base + steps.to(dtype)).to(dtype)
        rows.append(ExpertTensor("w", f"{5 - number}-e", own, True, base, torch.float32, cache))
    return ParameterStack("w", base, tuple(rows), torch.float32)


def computed(
    method: RuledMethod, tensors: ParameterStack, knobs: dict[str, Tensor], length: int = 0
) -> Tensor:
    out = torch.full(tensors.base.shape, torch.nan)
    blocks.write(method.rule(tensors, knobs), tensors, out, length=length)
    return out


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def test_the_methods_of_a_search_are_merged_in_blocks() -> None:
    assert {name_of(method) for method in RULED} == {
        "breadcrumbs",
        "breadcrumbs_ties",
        "dare_linear",
        "dare_ties",
        "della",
        "della_linear",
        "linear",
        "sce",
        "slerp",
        "task_arithmetic",
        "ties",
    }


@pytest.mark.parametrize("method", [*RULED, *MORE], ids=repr)
@settings(max_examples=12, deadline=None)
@given(
    shape=st.sampled_from([(), (0,), (1,), (37,), (5, 9), (2, 3, 4)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
    length=st.integers(1, 50),
    limit=st.sampled_from([0, 200, 1000, PLENTY]),
)
def test_bits_depend_neither_on_blocks_nor_on_what_is_cached(
    method: RuledMethod,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    length: int,
    limit: int,
) -> None:
    count, cache = METHODS.get(method, 3), TensorCache(limit)
    plain = whole_experts(count, shape, dtype, seed)
    keeping = whole_experts(count, shape, dtype, seed, cache)
    for candidate in range(3):
        knobs = random_knobs(method, count, torch.float32, seed + candidate)
        expected = bits(computed(method, plain, knobs))
        assert bits(computed(method, keeping, knobs)) == expected
        assert bits(computed(method, keeping, knobs, length)) == expected
        assert cache.held_bytes <= limit


@pytest.mark.parametrize(
    "cache", [None, TensorCache(0), TensorCache(PLENTY)], ids=["none", "0", "all"]
)
def test_thresholds_of_float64_checkpoints_are_those_of_their_deltas(
    cache: TensorCache | None,
) -> None:
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(400, generator=noise, dtype=torch.float64)
    own = base + 0.01 * torch.randn(400, generator=noise, dtype=torch.float64)
    row = ExpertTensor("w", "e", own, True, base, torch.float32, cache)
    thresholds = [row.threshold(count) for count in range(1, 400)]
    magnitudes = (own.float() - base.float()).abs().sort(descending=True).values
    assert thresholds == magnitudes[:399].tolist()


@pytest.mark.parametrize("method", [*RULED, *MORE], ids=repr)
def test_whole_experts_and_their_deltas_give_one_merge(method: RuledMethod) -> None:
    count = METHODS.get(method, 3)
    tensors = whole_experts(count, (6, 7), torch.float32, 3)
    knobs = random_knobs(method, count, torch.float32, 3)
    deltas = torch.stack([row.delta() for row in tensors.rows])
    problem = random_problem(method, (6, 7), 3, experts=count)
    slot = type(problem.slot)("w", tuple(row.expert for row in tensors.rows))
    of_deltas = method.merge(slot, tensors.base, deltas, knobs)
    torch.testing.assert_close(computed(method, tensors, knobs), of_deltas, rtol=1e-5, atol=1e-6)


def test_an_overridden_merge_is_the_one_that_counts() -> None:
    class Own(Linear):
        def merge(self, *arguments: object, **named: object) -> Tensor:
            raise MergeError("mine")

    assert blocks.merges_by_rule(Linear())
    assert not blocks.merges_by_rule(Own())


def test_one_expert_with_all_weight_is_returned_bit_for_bit() -> None:
    tensors = whole_experts(3, (50,), torch.bfloat16, 0)
    knobs = {"weight": torch.tensor([0.0, 2.0, 0.0])}
    assert bits(computed(Linear(), tensors, knobs)) == bits(tensors.rows[1].stored.float())


def test_signs_that_balance_leave_the_base() -> None:
    """Products are rounded before they are added up: fused, they would leave a remainder."""
    base = torch.zeros(64)
    delta = torch.linspace(0.1, 1.0, 64)
    problem = random_problem(Ties(), (64,), 0, experts=2, dtype=torch.float32)
    knobs = problem.but(weight=[0.3, 0.3], density=[1.0, 1.0], scale=1.0).knobs
    tensors = stacked(Ties(), problem.slot, base, torch.stack([delta, -delta]))
    assert not computed(Ties(), tensors, knobs).any()


def test_no_chance_is_kept_without_finite_rescaling() -> None:
    """What is kept with a chance below the noise's resolution is kept with that resolution's."""
    method = Della()
    tensors = whole_experts(2, (40, 40), torch.float32, 0)
    knobs = {
        "weight": torch.ones(2),
        "density": torch.tensor([1e-42, 0.2]),
        "epsilon": torch.tensor([0.5, 0.2]),
        "scale": torch.tensor(1.0),
    }
    assert computed(method, tensors, knobs).isfinite().all()


class TestPools:
    @pytest.fixture(scope="class")
    def pools(self, tmp_path_factory: pytest.TempPathFactory) -> list[ExpertPool]:
        """A pool of checkpoints and one with an adapter among them."""
        root = tmp_path_factory.mktemp("chunks")
        base = builders.llama(root / "base", dtype=torch.bfloat16)
        whole = builders.experts_of(base, 2)
        adapter = builders.lora_adapter(root / "adapter", base)
        opened = [whole, {**whole, "adapter": str(adapter)}]
        return [ExpertPool.open(str(base), experts) for experts in opened]

    @staticmethod
    def plans(pool: ExpertPool, method: MergeMethod) -> Iterator[MergePlan]:
        """Several candidates of one method."""
        for seed in range(3):
            knobs = random_knobs(method, len(pool.expert_names), torch.float32, seed)
            given = {
                name: dict(zip(pool.expert_names, value.tolist(), strict=True))
                if value.dim()
                else float(value)
                for name, value in knobs.items()
            }
            yield MergePlan(method, Whole(), pool.expert_names, {"model": given})

    @pytest.mark.parametrize("method", [Linear(), Ties(), DareTies(), Breadcrumbs()], ids=name_of)
    def test_held_pools_give_the_bits_of_the_files(
        self, pools: list[ExpertPool], method: MergeMethod
    ) -> None:
        for pool in pools:
            ample, scarce = pool.resident(CPU), pool.resident(CPU, cache_bytes=20_000)
            streamed = pool.resident(CPU, stream=True)
            for plan in self.plans(pool, method):
                from_files = plan.weights(pool, dtype=torch.float32)
                for held in (ample, scarce, streamed):
                    found = plan.weights(held, dtype=torch.float32)
                    for name in pool.names:
                        assert torch.equal(found[name], from_files[name]), name

    def test_what_is_merged_once_keeps_nothing_and_finds_what_is_kept(
        self, pools: list[ExpertPool]
    ) -> None:
        for pool in pools:
            held = pool.resident(CPU)
            plan, *_ = self.plans(pool, Ties())

            def merged(source: ExpertPool, plan: MergePlan = plan) -> list[Tensor]:
                return list(dict(plan.weights(source, dtype=torch.float32)).values())

            once = merged(held.reading())
            assert held.kept_bytes == 0
            many, kept = merged(held), held.kept_bytes
            assert kept > 0
            again = merged(held.reading())
            assert held.kept_bytes == kept
            assert all(map(torch.equal, once, many))
            assert all(map(torch.equal, once, again))
            held.forget()
            assert held.kept_bytes == 0

    def test_written_in_place_like_read_and_copied(self, pools: list[ExpertPool]) -> None:
        pool = pools[0]
        for dtype in (torch.float32, torch.bfloat16):
            resident = Resident.from_pool(pool, device="cpu", dtype=dtype)
            for of_weights in (None, torch.float32, torch.bfloat16):
                weights = uniform_plan(Ties(), Whole(), pool).weights(pool, dtype=of_weights)
                assert isinstance(weights, InPlaceWeights)
                resident.write(weights)
                state = resident.module.state_dict()
                for name in pool.names:
                    assert torch.equal(state[name], weights[name].to(dtype)), name

    def test_a_pool_of_fewer_experts_shares_what_is_kept(self, pools: list[ExpertPool]) -> None:
        held = pools[0].resident(CPU)
        dict(uniform_plan(Ties(), Whole(), held).weights(held))
        known = held._cache
        assert known is not None
        before = known.held_bytes
        assert before > 0
        fewer = held.select(held.expert_names[:1])
        dict(uniform_plan(Ties(), Whole(), fewer).weights(held))
        assert known.held_bytes == before

    def test_cache_and_place_are_checked(self, pools: list[ExpertPool]) -> None:
        with pytest.raises(ValueError, match="either shared or streamed: set one"):
            pools[0].resident(CPU, shared=True, stream=True)
        with pytest.raises(ValueError, match="cache_bytes is -5, expected at least 0"):
            pools[0].resident(CPU, cache_bytes=-5)


def test_streamed_weights_send_one_tensor_ahead() -> None:
    weights = {name: torch.full((2,), float(i)) for i, name in enumerate("abc")}
    sent: list[str] = []

    class Watched(StreamedWeights):
        def _send(self, name: str) -> Tensor:
            sent.append(name)
            return super()._send(name)

    streamed = Watched(weights, CPU)
    assert list(streamed) == ["a", "b", "c"]
    assert "b" in streamed
    assert sent == []
    assert torch.equal(streamed["a"], weights["a"])
    assert streamed["a"] is streamed["a"]
    assert sent == ["a", "b"]
    for name in ("b", "c", "a"):
        assert torch.equal(streamed[name], weights[name])
    assert sent == ["a", "b", "c", "a", "b"]
    assert torch.equal(streamed["c"], weights["c"])  # out of turn
    assert sent[5:] == ["c"]
    with pytest.raises(KeyError):
        streamed["d"]
    weights["a"].zero_().sub_(1)
    assert streamed["a"].tolist() == [0, 0]  # it holds copies
