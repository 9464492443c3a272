import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import BlockKind, Grouping, Layers, Whole
from merging.method import MergeError, MergeMethod
from merging.methods.dare_ties import DareTies
from merging.methods.linear import Linear
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import MergePlan, uniform_plan
from merging.spaces.axes import Axis, Choice, Real, check, start
from merging.spaces.coefficients import CoefficientSpace
from merging.spaces.mixed import MixedSpace
from merging.spaces.vectors import VectorSpace
from tests import builders

SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    base = builders.llama(tmp_path_factory.mktemp("spaces") / "base")
    return ExpertPool.open(str(base), builders.experts_of(base, 3))


def mixed(pool: ExpertPool, *, grouping: Grouping | None = None, **options: Any) -> MixedSpace:
    methods: dict[str, MergeMethod] = {
        "sum": TaskArithmetic(),
        "ties": Ties(),
        "dare": DareTies(),
    }
    return MixedSpace(pool, methods, grouping or Whole(), **options)


def values(data: st.DataObject, axes: tuple[Axis, ...]) -> Vector:
    """A genome anywhere on the axes."""
    genome = []
    for axis in axes:
        if isinstance(axis, Choice):
            genome.append(float(data.draw(st.integers(0, len(axis.options) - 1))))
        else:
            genome.append(data.draw(st.floats(max(axis.low, -5), min(axis.high, 5))))
    return np.array(genome)


def same_bits(space: VectorSpace, a: Vector, b: Vector) -> bool:
    one, other = space.decode(a), space.decode(b)
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


class TestAxes:
    AXES = (Choice("method", ("slerp", "ties")), Real("density", 0.0, 1.0, 0.5), Real("weight"))

    def test_start(self) -> None:
        np.testing.assert_array_equal(start(self.AXES), [0.0, 0.5, 0.0])
        assert start(self.AXES).dtype == np.float64

    @pytest.mark.parametrize("genome", [[0, 0, -1e9], [1, 1, 3.5], [1.0, 0.3, 0.0]])
    def test_on_the_axes(self, genome: list[float]) -> None:
        check(self.AXES, np.array(genome, dtype=np.float64))

    @pytest.mark.parametrize(
        ("genome", "message"),
        [
            ([0, 0.5], r"genome has shape \(2,\), the space wants \(3,\)"),
            ([[0, 0.5, 0]], r"genome has shape \(1, 3\), the space wants \(3,\)"),
            ([2, 0.5, 0], r"method: 2.0 is no index into \('slerp', 'ties'\)"),
            ([0.5, 0.5, 0], "method: 0.5 is no index"),
            ([-1, 0.5, 0], "method: -1.0 is no index"),
            ([math.nan, 0.5, 0], "method: nan is no index"),
            ([0, 1.01, 0], r"density: 1.01 lies outside \[0.0, 1.0\]"),
            ([0, math.nan, 0], "density: nan lies outside"),
            ([0, 0.5, math.inf], r"weight: inf lies outside \[-inf, inf\]"),
        ],
    )
    def test_off_the_axes(self, genome: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check(self.AXES, np.array(genome, dtype=np.float64))


class TestCoefficientSpace:
    def test_axes_are_groups_by_knobs_by_experts(self, pool: ExpertPool) -> None:
        space = CoefficientSpace(pool, Ties(), BlockKind())
        assert [axis.name for axis in space.axes][:7] == [
            "weight/rest/code",
            "weight/rest/prose",
            "weight/rest/maths",
            "density/rest/code",
            "density/rest/prose",
            "density/rest/maths",
            "scale/rest/all",
        ]
        assert len(space.axes) == 3 * (3 + 3 + 1)

    def test_weights_are_unbounded_and_density_is_not(self, pool: ExpertPool) -> None:
        axes = {a.name: a for a in CoefficientSpace(pool, Ties(), Whole()).axes}
        weight, density = axes["weight/model/code"], axes["density/model/code"]
        assert isinstance(weight, Real)
        assert isinstance(density, Real)
        assert (weight.low, weight.high) == (-math.inf, math.inf)
        assert (density.low, density.high) == (0.0, 1.0)

    def test_start_is_the_static_merge(self, pool: ExpertPool) -> None:
        space = CoefficientSpace(pool, Ties(), Layers())
        static = uniform_plan(Ties(), Layers(), pool)
        assert space.plan(start(space.axes)) == static

    @SETTINGS
    @given(data=st.data())
    def test_every_number_lands_where_its_axis_says(
        self, pool: ExpertPool, data: st.DataObject
    ) -> None:
        space = CoefficientSpace(pool, Ties(), Layers(by_kind=True))
        genome = values(data, space.axes)
        plan = space.plan(genome)
        for axis, value in zip(space.axes, genome, strict=True):
            knob, group, expert = axis.name.split("/")
            table = plan.coefficients[group][knob]
            assert (table if isinstance(table, float) else table[expert]) == value

    @SETTINGS
    @given(data=st.data())
    def test_same_genome_same_bits_and_description_rebuilds(
        self, pool: ExpertPool, data: st.DataObject
    ) -> None:
        space = CoefficientSpace(pool, DareTies(), BlockKind())
        genome = values(data, space.axes)
        assert same_bits(space, genome, genome.copy())
        assert same_bits(space, genome, space.canonical(genome))
        again = MergePlan.from_description(space.plan(genome).describe()).weights(pool)
        assert all(torch.equal(again[n], t) for n, t in space.decode(genome).items())

    def test_dtype_of_decoded_weights(self, pool: ExpertPool) -> None:
        space = CoefficientSpace(pool, Linear(), Whole(), dtype=torch.bfloat16)
        assert {t.dtype for t in space.decode(start(space.axes)).values()} == {torch.bfloat16}

    def test_only_named_knobs_are_searched(self, pool: ExpertPool) -> None:
        space = CoefficientSpace(
            pool, Ties(), Whole(), knobs=["weight"], start={"density": 0.2, "scale": 0.7}
        )
        assert {axis.name.partition("/")[0] for axis in space.axes} == {"weight"}
        table = space.plan(np.array([1.0, 2.0, 3.0])).coefficients["model"]
        assert table["weight"] == {"code": 1.0, "prose": 2.0, "maths": 3.0}
        assert table["density"] == dict.fromkeys(pool.expert_names, 0.2)
        assert table["scale"] == 0.7

    def test_options_reach_the_axes(self, pool: ExpertPool) -> None:
        space = CoefficientSpace(
            pool,
            Ties(),
            Whole(),
            start={"weight": 0.25},
            bounds={"weight": [-1, 2]},
            scale={"weight": 0.1},
        )
        assert space.axes[0] == Real("weight/model/code", -1, 2, 0.25, 0.1)
        assert space.axes[-1] == Real("scale/model/all", start=1.0, scale=0.3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"knobs": ["wieght"]}, "knobs: Ties has no knob 'wieght', its knobs are weight, den"),
            ({"start": {"gamma": 1}}, "start: Ties has no knob 'gamma', its knobs are weight"),
            ({"bounds": {"t": [0, 1]}}, "bounds: Ties has no knob 't'"),
            ({"scale": {"t": 1}}, "scale: Ties has no knob 't'"),
            ({"knobs": []}, "Ties leaves nothing to search: choose a method with knobs"),
            (
                {"bounds": {"density": [0, 1.5]}},
                r"bounds of density: \[0, 1.5\] does not lie in \[0.0, 1.0\]",
            ),
            ({"bounds": {"weight": [2, 1]}}, r"bounds of weight: \[2, 1\] does not lie in"),
            ({"bounds": {"weight": [0, math.nan]}}, "bounds of weight: .* does not lie in"),
            ({"bounds": {"weight": [1]}}, r"bounds of weight: expected \[low, high\], got \[1\]"),
            (
                {"bounds": {"weight": [2, 3]}},
                r"start of weight: 1.0 lies outside \[2, 3\]: set start.weight inside",
            ),
            ({"start": {"density": 2}}, r"start of density: 2 lies outside \[0.0, 1.0\]"),
            ({"start": {"weight": math.inf}}, "start of weight: inf lies outside"),
            ({"scale": {"weight": 0}}, "scale of weight: 0 is no step, it must be positive"),
            ({"scale": {"weight": -1}}, "scale of weight: -1 is no step"),
        ],
    )
    def test_wrong_options_are_refused(
        self, pool: ExpertPool, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(MergeError, match=message):
            CoefficientSpace(pool, Ties(), Whole(), **options)

    def test_genome_off_its_axis_is_refused_by_name(self, pool: ExpertPool) -> None:
        space = CoefficientSpace(pool, Ties(), Whole())
        genome = start(space.axes)
        genome[3] = -0.5
        with pytest.raises(ValueError, match=r"density/model/code: -0\.5 lies outside"):
            space.decode(genome)


class TestMixedSpace:
    def test_axes_are_method_then_experts_then_knobs(self, pool: ExpertPool) -> None:
        space = mixed(pool)
        assert space.axes[0] == Choice("method", ("sum", "ties", "dare"))
        assert [axis.name for axis in space.axes[1:4]] == ["use/code", "use/prose", "use/maths"]
        assert len(space.axes) == 4 + (3 + 1) + (3 + 3 + 1) + (3 + 3 + 1)
        assert len({axis.name for axis in space.axes}) == len(space.axes)

    def test_start_takes_the_first_method_and_every_expert(self, pool: ExpertPool) -> None:
        space = mixed(pool)
        assert space.plan(start(space.axes)) == uniform_plan(TaskArithmetic(), Whole(), pool)

    def test_experts_need_not_be_searched(self, pool: ExpertPool) -> None:
        space = mixed(pool, choose_experts=False)
        assert not any(axis.name.startswith("use/") for axis in space.axes)
        assert space.plan(start(space.axes)).experts == pool.expert_names

    def test_chosen_method_reads_its_own_knobs(self, pool: ExpertPool) -> None:
        space = mixed(pool)
        genome = start(space.axes)
        genome[0] = 1.0
        place = [axis.name for axis in space.axes].index("ties/density/model/prose")
        genome[place] = 0.125
        plan = space.plan(genome)
        assert plan.method == Ties()
        density = plan.coefficients["model"]["density"]
        assert density == {"code": 0.5, "prose": 0.125, "maths": 0.5}

    def test_experts_left_out_take_no_part(self, pool: ExpertPool) -> None:
        space = mixed(pool)
        genome = start(space.axes)
        genome[2] = 0.0
        plan = space.plan(genome)
        assert plan.experts == ("code", "maths")
        alone = uniform_plan(TaskArithmetic(), Whole(), pool.select(("code", "maths")))
        weights = alone.weights(pool)
        assert all(torch.equal(weights[n], t) for n, t in space.decode(genome).items())

    def test_no_expert_is_a_failed_merge(self, pool: ExpertPool) -> None:
        space = mixed(pool)
        genome = start(space.axes)
        genome[1:4] = 0.0
        with pytest.raises(MergeError, match="no expert is chosen: at least one must take part"):
            space.decode(genome)

    def test_a_method_for_two_refuses_three_on_reading(self, pool: ExpertPool) -> None:
        space = MixedSpace(pool, {"slerp": Slerp()}, Whole())
        weights = space.decode(start(space.axes))
        with pytest.raises(MergeError, match="slerp merges exactly 2 experts, 3 given"):
            next(iter(weights.values()))

    def test_no_method_is_refused(self, pool: ExpertPool) -> None:
        with pytest.raises(MergeError, match="at least one method: list some under methods"):
            MixedSpace(pool, {}, Whole())

    @SETTINGS
    @given(data=st.data())
    def test_canonical_form_decodes_to_the_same_weights(
        self, pool: ExpertPool, data: st.DataObject
    ) -> None:
        space = mixed(pool, grouping=BlockKind())
        genome = values(data, space.axes)
        if not genome[1:4].any():
            genome[1] = 1.0
        canonical = space.canonical(genome)
        assert space.plan(canonical) == space.plan(genome)
        assert same_bits(space, canonical, genome)
        np.testing.assert_array_equal(space.canonical(canonical), canonical)

    @SETTINGS
    @given(data=st.data())
    def test_genomes_of_one_plan_share_their_canonical_form(
        self, pool: ExpertPool, data: st.DataObject
    ) -> None:
        space = mixed(pool)
        one, other = values(data, space.axes), values(data, space.axes)
        one[1:4] = other[1:4] = data.draw(
            st.sampled_from([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        )
        other[0] = one[0]
        plan = space.plan(one)
        prefix = f"{('sum', 'ties', 'dare')[int(one[0])]}/"
        for i, axis in enumerate(space.axes):
            expert = axis.name.rpartition("/")[2]
            if axis.name.startswith(prefix) and expert in (*plan.experts, "all"):
                other[i] = one[i]
        assert space.plan(other) == plan
        np.testing.assert_array_equal(space.canonical(other), space.canonical(one))
        assert space.canonical(one) is not one
