import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoints.experts import ExpertPool
from merging.grouping import BlockKind, Layers, PerTensor, Whole
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.dare_ties import DareTies
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan, uniform_plan
from merging.recipe import Recipe, RecipeError, dtype_name, parse_dtype
from merging.weights import CheckpointError
from tests import builders


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    base = builders.llama(tmp_path_factory.mktemp("recipe") / "base", dtype=torch.bfloat16)
    return ExpertPool.open(str(base), builders.experts_of(base, 3))


@pytest.fixture(scope="module")
def recipe(pool: ExpertPool) -> Recipe:
    plan = uniform_plan(DareTies(seed=3), BlockKind(), pool)
    return Recipe.of(pool, plan, dtype="float32")


@pytest.fixture
def content(recipe: Recipe) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(recipe.to_json()))
    return loaded


def move(pool: ExpertPool, to: Path) -> dict[str, str]:
    """Copies base and experts; display name (or base) -> copy."""
    sources = {"base": pool.base.source, **pool.sources}
    return {name: str(shutil.copytree(path, to / name)) for name, path in sources.items()}


class TestRoundTrip:
    def test_through_a_file(self, recipe: Recipe, tmp_path: Path) -> None:
        recipe.save(tmp_path / "recipe.json")
        assert Recipe.load(tmp_path / "recipe.json") == recipe
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]

    def test_content(self, pool: ExpertPool, content: dict[str, Any]) -> None:
        assert content["format"] == 1
        assert content["base"] == {"source": pool.base.source, "sha256": pool.base.sha256}
        assert list(content["experts"]) == ["code", "prose", "maths"]
        assert content["experts"]["prose"]["sha256"] == pool.identities[1]
        assert content["method"]["_target_"] == "merging.methods.dare_ties.DareTies"
        assert content["method"]["seed"] == 3
        assert content["grouping"] == {"kind": "BlockKind"}
        assert content["dtype"] == "float32"
        assert content["privacy"] is None
        assert content["created_by"].startswith("evomerge ")

    def test_a_subset_of_the_pool(self, pool: ExpertPool, tmp_path: Path) -> None:
        plan = MergePlan(
            TaskArithmetic(), Whole(), ("maths",), {"model": {"weight": -0.1, "scale": 1.3}}
        )
        Recipe.of(pool, plan).save(tmp_path / "recipe.json")
        again = Recipe.load(tmp_path / "recipe.json")
        assert again.plan == plan
        assert list(again.experts) == ["code", "prose", "maths"]

    @pytest.mark.parametrize("dtype", [None, torch.float32])
    def test_rebuilds_bit_for_bit(
        self, pool: ExpertPool, tmp_path: Path, dtype: torch.dtype | None
    ) -> None:
        knobs: dict[str, Any] = {
            "weight": {"code": 1 / 3, "prose": 0.1, "maths": -2e-7},
            "scale": 0.3,
        }
        knobs |= {"density": 0.7, "gamma": 0.02}
        groups = dict.fromkeys(Layers(by_kind=True).assign(pool.names).values(), knobs)
        plan = MergePlan(BreadcrumbsTies(), Layers(by_kind=True), pool.expert_names, groups)
        weights = dict(plan.weights(pool, dtype=dtype))
        Recipe.of(pool, plan, dtype=dtype_name(dtype)).save(tmp_path / "recipe.json")

        recipe = Recipe.load(tmp_path / "recipe.json")
        rebuilt = recipe.plan.weights(recipe.open_pool(), dtype=recipe.torch_dtype)
        assert list(rebuilt) == list(weights)
        for name, tensor in rebuilt.items():
            assert tensor.dtype == weights[name].dtype == (dtype or torch.bfloat16)
            assert torch.equal(tensor, weights[name])

    def test_every_bit_of_a_coefficient_survives(self, pool: ExpertPool, tmp_path: Path) -> None:
        numbers = [0.1 + 0.2, 1 / 3, -1e-300, 5e-324]
        for number in numbers:
            plan = MergePlan(
                TaskArithmetic(), Whole(), ("code",), {"model": {"weight": number, "scale": 1.0}}
            )
            Recipe.of(pool, plan).save(tmp_path / "recipe.json")
            assert Recipe.load(tmp_path / "recipe.json").plan == plan

    def test_is_small_for_many_groups(self, tmp_path: Path) -> None:
        base = builders.llama(tmp_path / "base", num_hidden_layers=24)
        pool = ExpertPool.open(str(base), builders.experts_of(base, 3))
        plan = uniform_plan(DareTies(), PerTensor(), pool)
        third = {
            group: {
                knob: {e: v * 0.123456789012345 for e, v in value.items()}
                if isinstance(value, dict)
                else 0.123456789012345
                for knob, value in knobs.items()
            }
            for group, knobs in plan.coefficients.items()
        }
        assert len(third) == 24 * 9 + 3
        plan = MergePlan(plan.method, plan.grouping, plan.experts, third)
        path = tmp_path / "recipe.json"
        Recipe.of(pool, plan).save(path)
        assert path.stat().st_size < 100_000
        assert len(path.read_text().splitlines()) < len(third) + 40  # readable: a group a line
        assert Recipe.load(path).plan == plan


class TestOpenPool:
    def test_changed_expert_is_refused_with_the_remedy(
        self, pool: ExpertPool, recipe: Recipe, tmp_path: Path
    ) -> None:
        moved = move(pool, tmp_path)
        weights = Path(moved["prose"]) / "model.safetensors"
        tensors = load_file(weights)
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, weights, metadata={"format": "pt"})
        message = (
            r"prose: .*prose has content [0-9a-f]{12}, the recipe was made with [0-9a-f]{12}: "
            "name the right checkpoint of 'prose' to open_pool"
        )
        with pytest.raises(RecipeError, match=message):
            recipe.open_pool(replaced=moved)

    def test_changed_base_is_refused(
        self, pool: ExpertPool, recipe: Recipe, tmp_path: Path
    ) -> None:
        with pytest.raises(RecipeError, match=r"base: .* of 'base' to open_pool"):
            recipe.open_pool(replaced={"base": pool.sources["code"]})

    def test_swapped_experts_are_refused(self, pool: ExpertPool, recipe: Recipe) -> None:
        swapped = {"code": pool.sources["prose"], "prose": pool.sources["code"]}
        with pytest.raises(RecipeError, match=r"code: .* of 'code' to open_pool"):
            recipe.open_pool(replaced=swapped)

    def test_moved_sources_give_the_same_bits(
        self, pool: ExpertPool, recipe: Recipe, tmp_path: Path
    ) -> None:
        elsewhere = recipe.open_pool(replaced=move(pool, tmp_path))
        assert str(tmp_path) in elsewhere.base.source
        weights = recipe.plan.weights(pool)
        for name, tensor in recipe.plan.weights(elsewhere).items():
            assert torch.equal(tensor, weights[name])

    def test_unknown_ingredient_is_refused(self, recipe: Recipe) -> None:
        message = "source 'poetry' is no ingredient: expected base, code, prose, maths"
        with pytest.raises(RecipeError, match=message):
            recipe.open_pool(replaced={"poetry": "x"})

    def test_missing_source_is_refused(self, recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="does not exist"):
            recipe.open_pool(replaced={"code": str(tmp_path / "gone")})


class TestRefusals:
    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match=r"gone\.json: cannot be read \(No such file"):
            Recipe.load(tmp_path / "gone.json")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"format": 1', r"recipe\.json: not JSON \(.*line 1"),
            ("", r"recipe\.json: not JSON"),
            ("[1, 2]", "expected a JSON object: this is no recipe"),
            ("null", "expected a JSON object"),
            ('{"format": 2}', "format 2 is not 1: rebuild it with the version of evomerge"),
            ("{}", "format None is not 1"),
        ],
    )
    def test_no_recipe(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "recipe.json").write_text(text)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(tmp_path / "recipe.json")

    def test_binary_file(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.json").write_bytes(b"\x80\x81\xff")
        with pytest.raises(RecipeError, match=r"recipe\.json: not JSON"):
            Recipe.load(tmp_path / "recipe.json")

    @pytest.mark.parametrize(
        "key", ["base", "experts", "method", "grouping", "merged", "coefficients"]
    )
    def test_missing_key(self, content: dict[str, Any], key: str) -> None:
        del content[key]
        with pytest.raises(RecipeError, match=f"recipe: '{key}' is missing"):
            Recipe.from_json(content)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("base", {"source": "x"}, "recipe: malformed: .*'sha256'"),
            ("base", "x", "recipe: malformed"),
            ("experts", ["x"], "recipe: malformed"),
            ("method", "ties", "'method' must be a dict, got 'ties'"),
            ("merged", "code", "'merged' must be a list, got 'code'"),
            ("coefficients", [1], r"'coefficients' must be a dict, got \[1\]"),
            ("coefficients", {"model": 1}, "coefficients of 'model' must be a dict, got 1"),
            ("grouping", {"kind": "Stripes"}, "unknown grouping 'Stripes'"),
            ("dtype", "float8", "dtype 'float8' is unknown: expected one of bfloat16"),
            ("method", {"_target_": "os.system"}, "'os.system' is no merge method"),
            ("method", {"_target_": "pathlib.Path"}, "'pathlib.Path' is no merge method"),
        ],
    )
    def test_senseless_value(
        self, content: dict[str, Any], key: str, value: Any, message: str
    ) -> None:
        with pytest.raises(RecipeError, match=message):
            Recipe.from_json(content | {key: value})

    def test_message_names_the_file(self, content: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps(content | {"dtype": "float8"}))
        with pytest.raises(RecipeError, match=r"recipe\.json: dtype 'float8' is unknown"):
            Recipe.load(path)

    def test_failed_write_leaves_the_old_recipe(self, recipe: Recipe, tmp_path: Path) -> None:
        path = tmp_path / "recipe.json"
        recipe.save(path)
        before = path.read_bytes()
        broken = Recipe(
            recipe.base, recipe.experts, recipe.plan, privacy={"epsilon": {1, 2}}
        )  # no JSON
        with pytest.raises(TypeError, match="set is not JSON"):
            broken.save(path)
        assert path.read_bytes() == before
        assert [each.name for each in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_names(dtype: torch.dtype) -> None:
    name = dtype_name(dtype)
    assert name is not None
    assert parse_dtype(name) is dtype
    assert dtype_name(None) is None
