"""Recipes as mergekit files: read back, they give the same weights."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging.checkpoints.experts import ExpertPool
from merging.grouping import BlockKind, Grouping, Layers, PerTensor, Whole
from merging.mergekit_yaml.parameters import TensorPosition, resolve
from merging.mergekit_yaml.reading import from_mergekit
from merging.mergekit_yaml.spelling import METHODS, MergekitError
from merging.mergekit_yaml.writing import to_mergekit
from merging.method import MergeMethod
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.iso_c import IsoC
from merging.methods.karcher import Karcher
from merging.methods.linear import Linear
from merging.methods.multi_slerp import MultiSlerp
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import MergePlan, uniform_plan
from merging.recipe import Ingredient, Recipe
from merging.zoo.store import Zoo
from tests import builders
from tests.merging.mergekit_yaml.mergekit_files import EXPERTS

GROUPINGS: list[Grouping] = [Whole(), BlockKind(), Layers(2, by_kind=True), PerTensor()]


def written(plan: MergePlan, pool: ExpertPool, path: Path, dtype: str | None = None) -> str:
    text = to_mergekit(Recipe.of(pool, plan, dtype=dtype), pool)
    path.write_text(text)
    return text


def varied(method: MergeMethod, grouping: Grouping, pool: ExpertPool, data: Any) -> MergePlan:
    """A plan with other values everywhere, as far as mergekit has a word for them."""
    plan = uniform_plan(method, grouping, pool)
    spelling = next(
        s
        for s in METHODS.values()
        if s.cls is type(method) and all(getattr(method, k) == v for k, v in s.fixed.items())
    )
    spelt = {*spelling.per_model.values(), *spelling.shared.values()}
    low, high = 0.1, 0.9

    def value(knob: str, start: float) -> float:
        drawn: float = data.draw(st.floats(low, high)) if knob in spelt else start
        return drawn if knob != "t" else drawn / 100

    coefficients = {
        group: {
            knob: {e: value(knob, v) for e, v in given.items()}
            if isinstance(given, Mapping)
            else value(knob, given)
            for knob, given in knobs.items()
        }
        for group, knobs in plan.coefficients.items()
    }
    return MergePlan(method, grouping, plan.experts, coefficients)


class TestWriting:
    @pytest.fixture(scope="class")
    def pool(self, zoo: Path) -> ExpertPool:
        return ExpertPool.open(str(zoo / "base"), {name: str(zoo / name) for name in EXPERTS})

    @pytest.mark.parametrize("name", METHODS)
    @settings(
        max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_read_back_it_gives_the_same_weights(
        self, pool: ExpertPool, tmp_path: Path, name: str, data: st.DataObject
    ) -> None:
        spelling = METHODS[name]
        chosen = pool.select(EXPERTS[: spelling.count[1] or 3])
        options = {
            field: data.draw(st.booleans())
            for field in ("normalize", "rescale", "task_vectors", "flatten", "row_wise")
            if hasattr(spelling.cls(), field) and (field != "task_vectors" or spelling.fixed)
            if not (name == "sce" and field == "normalize")
        }
        method = spelling.cls(**options, **spelling.fixed)
        plan = varied(method, data.draw(st.sampled_from(GROUPINGS)), chosen, data)
        written(plan, chosen, tmp_path / "merge.yaml")
        job = from_mergekit(tmp_path / "merge.yaml")
        assert yaml.safe_load((tmp_path / "merge.yaml").read_text())["merge_method"] == name
        before = plan.weights(chosen)
        after = job.plan.weights(job.pool, dtype=job.dtype)
        assert set(after) == set(before)
        for tensor in before:
            assert after[tensor].dtype == before[tensor].dtype
            torch.testing.assert_close(after[tensor], before[tensor], atol=2e-6, rtol=2e-6)

    def test_subset_of_experts(self, pool: ExpertPool, tmp_path: Path) -> None:
        plan = MergePlan(
            TaskArithmetic(), Whole(), ("maths",), {"model": {"weight": 0.4, "scale": 1.0}}
        )
        written(plan, pool, tmp_path / "merge.yaml")
        job = from_mergekit(tmp_path / "merge.yaml")
        assert job.pool.expert_names == ("maths",)

    def test_arithmetic_is_float32_whatever_is_saved(
        self, pool: ExpertPool, tmp_path: Path
    ) -> None:
        plan = uniform_plan(Linear(), Whole(), pool)
        for dtype, saved in ((None, "float32"), ("bfloat16", "bfloat16")):
            content = yaml.safe_load(written(plan, pool, tmp_path / "merge.yaml", dtype))
            assert (content["dtype"], content["out_dtype"]) == ("float32", saved)

    def test_adapters(self, zoo: Path, tmp_path: Path) -> None:
        pool = ExpertPool.open(str(zoo / "base"), {"lora": str(zoo / "adapter")})
        for method in (TaskArithmetic(), Linear()):
            plan = uniform_plan(method, BlockKind(), pool)
            text = written(plan, pool, tmp_path / "merge.yaml")
            assert f"model: {zoo / 'base'}+{zoo / 'adapter'}" in text
            job = from_mergekit(tmp_path / "merge.yaml")
            before = plan.weights(pool)
            for name, tensor in job.plan.weights(job.pool).items():
                torch.testing.assert_close(tensor, before[name])

    def test_a_name_within_another_keeps_its_own_value(self) -> None:
        """The first filter that is a part of the name counts."""
        names = ("norm.weight", "layers.0.attn.q_norm.weight", "layers.0.norm.weight")
        base = SimpleNamespace(source="b", file_names=None, dtype=lambda _: torch.float32)
        pool: Any = SimpleNamespace(
            names=names, base=base, experts={"a": None}, sources={"a": "a"}, vocabulary=None
        )
        coefficients = {name: {"weight": {"a": float(i)}} for i, name in enumerate(names)}
        plan = MergePlan(Linear(), PerTensor(), ("a",), coefficients)
        ingredient = Ingredient("somewhere", "0")
        content = yaml.safe_load(to_mergekit(Recipe(ingredient, {"a": ingredient}, plan), pool))
        parameters = content["models"][0]["parameters"]
        for i, name in enumerate(names):
            assert resolve("weight", [parameters], TensorPosition(name, 0.0)) == i

    def test_groups_of_an_encoder(self, tmp_path: Path) -> None:
        base = builders.bert_classifier(tmp_path / "base", kind="encoder")
        builders.bert_classifier(tmp_path / "sst", like=base, seed=1)
        pool = ExpertPool.open(str(base), {"sst": str(tmp_path / "sst")})
        coefficients: dict[str, Any] = {
            name: {"weight": {"sst": i / 8}, "scale": 1.0} for i, name in enumerate(pool.names)
        }
        plan = MergePlan(TaskArithmetic(), PerTensor(), ("sst",), coefficients)
        written(plan, pool, tmp_path / "merge.yaml")
        assert from_mergekit(tmp_path / "merge.yaml").plan.coefficients == coefficients

    @pytest.mark.parametrize(
        ("method", "knobs", "message"),
        [
            (IsoC(), {"scale": 1.0}, "mergekit has no method for IsoC: keep the recipe"),
            (MultiSlerp(), {"weight": 1.0}, "mergekit has no method for MultiSlerp"),
            (
                Ties(majority="count"),
                {"weight": 1.0, "density": 1.0, "scale": 1.0},
                "mergekit's ties has no majority='count'",
            ),
            (
                Ties(trim="model"),
                {"weight": 1.0, "density": 1.0, "scale": 1.0},
                "mergekit's ties has no trim='model'",
            ),
            (
                Sce(normalize=False),
                {"density": 1.0, "scale": 1.0},
                "mergekit's sce has no normalize=False",
            ),
            (
                Sce(),
                {"density": 1.0, "scale": 0.5},
                "mergekit's sce has no scale, group 'model' has it at 0.5",
            ),
            (
                Karcher(),
                {"weight": {"code": 1.0, "prose": 2.0}},
                "mergekit's karcher has no weight, group 'model' has it at 1.0, 2.0",
            ),
            (Karcher(task_vectors=True), {"weight": 1.0}, "karcher has no task_vectors=True"),
            (
                Slerp(),
                {"weight": {"code": 1.0, "prose": -1.0}},
                "group 'model': weights that sum to zero have no t",
            ),
        ],
    )
    def test_what_mergekit_has_no_word_for_is_refused(
        self, pool: ExpertPool, method: MergeMethod, knobs: Any, message: str
    ) -> None:
        plan = MergePlan(method, Whole(), ("code", "prose"), {"model": knobs})
        with pytest.raises(MergekitError, match=message):
            to_mergekit(Recipe.of(pool, plan), pool)

    def test_what_lies_in_a_zoo_is_named_by_where_it_was_exported(
        self, pool: ExpertPool, tmp_path: Path
    ) -> None:
        store = Zoo.open(tmp_path / "zoo", create=True)
        store.add(pool.base.path, "base")
        stored = ExpertPool.open(f"zoo:{store.directory}/base", pool.sources)
        recipe = Recipe.of(stored, uniform_plan(Linear(), Whole(), stored))
        with pytest.raises(MergekitError, match=r"mergekit does not read zoo:.*: export it, then"):
            to_mergekit(recipe, stored)
        assert str(pool.sources["code"]) in to_mergekit(recipe, pool)

    def test_equal_karcher_weights_are_expressible(self, pool: ExpertPool, tmp_path: Path) -> None:
        plan = MergePlan(Karcher(), Whole(), EXPERTS, {"model": {"weight": 0.2}})
        content = yaml.safe_load(written(plan, pool, tmp_path / "merge.yaml"))
        assert content["parameters"] == {"max_iter": 50, "tol": 1e-6}
        assert "base_model" not in content

    def test_options_are_written(self, pool: ExpertPool, tmp_path: Path) -> None:
        for method, expected in (
            (NuSlerp(flatten=False), {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
            (
                NuSlerp(flatten=False, row_wise=True),
                {"nuslerp_flatten": False, "nuslerp_row_wise": False},
            ),
            (BreadcrumbsTies(), {"lambda": 1.0, "normalize": True}),
        ):
            plan = uniform_plan(method, Whole(), pool.select(("code", "prose")))
            content = yaml.safe_load(written(plan, pool, tmp_path / "merge.yaml"))
            assert content["parameters"] == expected
