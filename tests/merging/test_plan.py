from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging.checkpoints.experts import ExpertPool
from merging.grouping import BlockKind, Grouping, Layers, PerTensor, Whole
from merging.method import MergeError, MergeMethod
from merging.methods.dare_ties import DareTies
from merging.methods.linear import Linear
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import MergePlan, describe_method, method_from_description, uniform_plan
from merging.rules.blocks import Rule
from merging.weights import CheckpointError
from tests import builders
from tests.merging.methods.method_cases import METHODS, name_of

GROUPINGS: list[Grouping] = [Whole(), Layers(), Layers(2, by_kind=True), BlockKind(), PerTensor()]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExpertPool]:
    root = tmp_path_factory.mktemp("plan")
    opened = {}
    for name, dtype in DTYPES.items():
        base = builders.llama(root / name, dtype=dtype)
        opened[name] = ExpertPool.open(str(base), builders.experts_of(base, 3))
    return opened


@pytest.fixture(scope="module")
def pool(pools: dict[str, ExpertPool]) -> ExpertPool:
    return pools["float32"]


def whole(method: MergeMethod, experts: tuple[str, ...], **knobs: Any) -> MergePlan:
    return MergePlan(method, Whole(), experts, {"model": knobs})


def assert_same_bits(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


class TestWeights:
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def test_equal_a_naive_float64_sum(
        self, pools: dict[str, ExpertPool], data: st.DataObject
    ) -> None:
        pool = pools[data.draw(st.sampled_from(sorted(DTYPES)))]
        grouping = data.draw(st.sampled_from(GROUPINGS))
        group_of = grouping.assign(pool.names)
        number = st.floats(-3, 3, allow_nan=False)
        coefficients: dict[str, dict[str, Any]] = {
            group: {
                "weight": {expert: data.draw(number) for expert in pool.expert_names},
                "scale": data.draw(number),
            }
            for group in dict.fromkeys(group_of.values())
        }
        plan = MergePlan(TaskArithmetic(), grouping, pool.expert_names, coefficients)
        weights = plan.weights(pool)
        assert list(weights) == list(pool.names)
        for name in pool.names:
            knobs = coefficients[group_of[name]]
            base = pool.base[name].double()
            exact = base.clone()
            for expert in pool.expert_names:
                delta = pool.expert_weights(expert)[name].double() - base
                exact += knobs["scale"] * knobs["weight"][expert] * delta
            merged = weights[name]
            assert merged.dtype == pool.base.dtype(name)
            error = (merged.double() - exact).abs()
            # one rounding to the base's dtype, beside float32's own
            bound = torch.finfo(merged.dtype).eps / 2 * exact.abs() + 1e-5
            assert bool((error <= bound).all()), name

    def test_bfloat16_is_rounded_once_from_float32(self, pools: dict[str, ExpertPool]) -> None:
        pool = pools["bfloat16"]
        plan = uniform_plan(TaskArithmetic(), Whole(), pool)
        fine = plan.weights(pool, dtype=torch.float32)
        assert any(not torch.equal(t, t.bfloat16().float()) for t in fine.values())
        for name, tensor in plan.weights(pool).items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, fine[name].bfloat16())

    @pytest.mark.parametrize("method", METHODS, ids=name_of)
    def test_same_plan_same_bits(self, pool: ExpertPool, method: MergeMethod) -> None:
        chosen = pool.select(pool.expert_names[: METHODS[method]])
        plan = uniform_plan(method, Layers(by_kind=True), chosen)
        first = dict(plan.weights(pool))
        assert_same_bits(dict(plan.weights(pool)), first)
        assert_same_bits(dict(MergePlan.from_description(plan.describe()).weights(pool)), first)

    @pytest.mark.parametrize("method", [DareTies(), Linear(), Ties()], ids=name_of)
    def test_order_of_experts_changes_no_bit(self, pool: ExpertPool, method: MergeMethod) -> None:
        weight = {"code": 0.7, "prose": -0.2, "maths": 1.1}
        knobs = {"weight": weight, "scale": 0.9, "density": 0.5}
        knobs = {knob.name: knobs[knob.name] for knob in method.knobs}
        forth = whole(method, ("code", "prose", "maths"), **knobs)
        back = whole(method, ("maths", "code", "prose"), **knobs)
        assert_same_bits(dict(forth.weights(pool)), dict(back.weights(pool)))

    def test_a_subset_of_experts_leaves_the_others_out(self, pools: dict[str, ExpertPool]) -> None:
        pool = pools["float32"]
        some = whole(TaskArithmetic(), ("maths", "code"), weight=0.5, scale=1.0)
        zero = {"code": 0.5, "prose": 0.0, "maths": 0.5}
        every = whole(TaskArithmetic(), pool.expert_names, weight=zero, scale=1.0)
        for name, tensor in some.weights(pool).items():
            torch.testing.assert_close(tensor, every.weights(pool)[name])

    def test_one_number_for_a_knob_is_that_of_every_expert(self, pool: ExpertPool) -> None:
        one = whole(TaskArithmetic(), pool.expert_names, weight=0.5, scale=1.0)
        each = dict.fromkeys(pool.expert_names, 0.5)
        many = whole(TaskArithmetic(), pool.expert_names, weight=each, scale=1.0)
        assert_same_bits(dict(one.weights(pool)), dict(many.weights(pool)))

    def test_groups_get_their_own_coefficients(self, pool: ExpertPool) -> None:
        coefficients: dict[str, dict[str, Any]] = {
            "attention": {"weight": {"code": 1.0}, "scale": 1.0},
            "mlp": {"weight": {"code": 0.0}, "scale": 1.0},
            "rest": {"weight": {"code": 2.0}, "scale": 0.5},
        }
        weights = MergePlan(TaskArithmetic(), BlockKind(), ("code",), coefficients).weights(pool)
        expert = pool.expert_weights("code")
        for name, tensor in weights.items():
            origin = pool.base[name] if ".mlp." in name else expert[name]
            torch.testing.assert_close(tensor, origin)

    def test_only_what_is_read_is_computed(self, pool: ExpertPool) -> None:
        class Counting(TaskArithmetic):
            reads = 0

            def rule(self, *arguments: Any) -> Rule:
                Counting.reads += 1
                return super().rule(*arguments)

        weights = uniform_plan(Counting(), Whole(), pool).weights(pool)
        assert len(weights) == len(pool.names)
        assert pool.names[0] in weights
        assert "nothing" not in weights
        assert Counting.reads == 0
        assert weights[pool.names[0]].shape == pool.base.shape(pool.names[0])
        assert Counting.reads == 1

    def test_arguments_are_not_changed(self, pool: ExpertPool) -> None:
        before = {name: pool.base_tensor(name).clone() for name in pool.names}
        dict(uniform_plan(Ties(), Whole(), pool).weights(pool))
        assert all(torch.equal(pool.base_tensor(name), before[name]) for name in pool.names)


class TestRefusals:
    def refuse(self, pool: ExpertPool, plan: MergePlan, message: str) -> None:
        with pytest.raises(MergeError, match=message):
            plan.weights(pool)

    def test_no_expert(self, pool: ExpertPool) -> None:
        self.refuse(pool, whole(Linear(), (), weight=1.0), "has no expert: select at least one")

    def test_unknown_expert(self, pool: ExpertPool) -> None:
        with pytest.raises(CheckpointError, match="no expert is named 'poetry'"):
            whole(Linear(), ("poetry",), weight=1.0).weights(pool)

    def test_missing_group(self, pool: ExpertPool) -> None:
        plan = MergePlan(Linear(), BlockKind(), ("code",), {"attention": {"weight": 1.0}})
        self.refuse(
            pool, plan, r"no coefficients for group '(mlp|rest)': the plan has them for attention"
        )

    def test_missing_knob(self, pool: ExpertPool) -> None:
        plan = whole(Ties(), ("code",), weight=1.0, scale=1.0)
        self.refuse(
            pool,
            plan,
            "ties: knob 'density' is missing at group 'model': give weight, density, scale",
        )

    def test_unknown_knob(self, pool: ExpertPool) -> None:
        plan = whole(Linear(), ("code",), weight=1.0, wieght=1.0)
        self.refuse(pool, plan, "linear: knob 'wieght' is unknown at group 'model': give weight")

    def test_missing_expert_of_a_knob(self, pool: ExpertPool) -> None:
        plan = whole(Linear(), ("code", "prose"), weight={"code": 1.0})
        self.refuse(pool, plan, "group 'model': knob 'weight' has no value for 'prose'")

    @pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
    def test_out_of_range(self, pool: ExpertPool, density: float) -> None:
        plan = whole(Ties(), ("code",), weight=1.0, density={"code": density}, scale=1.0)
        self.refuse(
            pool, plan, rf"'density' is {density} at group 'model', expected a .* in \[0.0, 1.0"
        )

    def test_infinite_weight(self, pool: ExpertPool) -> None:
        plan = whole(Linear(), ("code",), weight=float("inf"))
        self.refuse(pool, plan, "'weight' is inf at group 'model', expected a finite number")

    def test_table_for_a_shared_knob(self, pool: ExpertPool) -> None:
        plan = whole(TaskArithmetic(), ("code",), weight=1.0, scale={"code": 1.0})
        self.refuse(pool, plan, "knob 'scale' takes one number for all experts")

    @pytest.mark.parametrize("value", ["1", None, True, [1.0]])
    def test_no_number(self, pool: ExpertPool, value: Any) -> None:
        plan = whole(Linear(), ("code",), weight=value)
        self.refuse(pool, plan, "group 'model': knob 'weight' needs a number, got")


class TestMethodDescriptions:
    @pytest.mark.parametrize("method", METHODS, ids=name_of)
    def test_round_trip(self, method: MergeMethod) -> None:
        assert method_from_description(describe_method(method)) == method

    def test_options_are_kept(self) -> None:
        method = DareTies(majority="count", normalize=False, seed=7)
        assert method_from_description(describe_method(method)) == method

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("os.system", "'os.system' is no merge method"),
            ("pathlib.Path", "'pathlib.Path' is no merge method"),
            ("antigravity.fly", "'antigravity.fly' is no merge method"),
            ("merging.plan.MergePlan", "'merging.plan.MergePlan' is no merge method"),
            ("merging.rules.knobs.read", "'merging.rules.knobs.read' is no merge method"),
            ("merging.method.MergeMethod", "'merging.method.MergeMethod' is no merge method"),
            ("nowhere.to.be.Found", "'nowhere.to.be.Found' cannot be imported: install"),
            ("merging.methods.ties.Tiez", "'merging.methods.ties.Tiez' cannot be imported"),
            ("Ties", "'Ties' cannot be imported"),
            ("", "'' cannot be imported"),
        ],
    )
    def test_other_targets_are_refused(self, target: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            method_from_description({"_target_": target})

    def test_refused_targets_are_not_called(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "trap.py").write_text(
            "called = []\n"
            "def merge(**_): called.append(1)\n"
            "class Trap:\n"
            "    merge = knobs = ()\n"
            "    def __init__(self, **_): called.append(1)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        for target in ("trap.merge", "trap.Trap"):
            with pytest.raises(ValueError, match="is no merge method"):
                method_from_description({"_target_": target, "command": "rm"})
        import trap  # type: ignore[import-not-found]

        assert trap.called == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bogus": 1}, "method merging.methods.ties.Ties: .*'bogus'"),
            ({"majority": "x"}, "'x'"),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            method_from_description({"_target_": "merging.methods.ties.Ties", **options})
