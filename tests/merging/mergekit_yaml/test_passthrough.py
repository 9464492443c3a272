"""mergekit's passthrough beside what its documentation says, computed from the files alone."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.mergekit_yaml.reading import from_mergekit
from merging.mergekit_yaml.spelling import MergekitError
from merging.mergekit_yaml.writing import to_mergekit
from merging.method import MergeError
from merging.methods.linear import Linear
from merging.plan import uniform_plan
from merging.recipe import Recipe
from merging.saving.save import save_model
from merging.stacks.layer_stack import BASE, MERGED, LayerStackPlan, StackedLayer
from tests import builders
from tests.merging.mergekit_yaml.mergekit_files import LAYERS, Run

FILES = {
    "one model, some of its layers twice": """
        slices:
        - sources: [{model: code, layer_range: [0, 4]}]
        - sources: [{model: code, layer_range: [2, 5]}]
        """,
    "three models, scaled by filters and gradients": """
        parameters: {scale: [{filter: k_proj, value: 0.9}, {filter: norm, value: [1, 2]}]}
        base_model: base
        slices:
        - sources: [{model: code, layer_range: [0, 2]}]
        - sources:
          - model: prose
            layer_range: [1, 4]
            parameters:
              scale: [{filter: o_proj, value: [0.5, 0.0]}, {filter: layers.2.mlp, value: -1}]
          parameters: {scale: [{filter: v_proj, value: 1e-1}]}
        - sources: [{model: base, layer_range: [4, 5]}]
          parameters: {scale: [{filter: q_proj, value: [0.25, 0.75]}, {value: 0.125}]}
        - sources: [{model: maths, layer_range: [4, 5], parameters: {scale: 1.5}}]
        """,
    "a whole model": "models: [{model: maths, parameters: {scale: [1.0, 0.5]}}]",
    "models for what is outside alone": """
        slices:
        - sources: [{model: maths, layer_range: [0, 0]}]
        - sources: [{model: code, layer_range: [3, 5]}]
        - sources: [{model: prose, layer_range: [5, 5]}]
        """,
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
class TestReading:
    def test_equals_slices_taken_by_hand(
        self, run: Run, zoo: Path, tmp_path: Path, text: str
    ) -> None:
        content = yaml.safe_load(text)
        job = run(yaml.safe_dump({"merge_method": "passthrough", **content}))
        save_model(job.pool, job.plan.weights(job.pool, dtype=job.dtype), tmp_path / "out")
        wanted, count = by_hand(content, zoo)
        assert_same(tmp_path / "out", wanted)
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["num_hidden_layers"] == count

    @pytest.mark.skipif(
        "EVOMERGE_MERGEKIT_PYTHON" not in os.environ, reason="needs a Python with mergekit 0.1.5"
    )
    def test_equals_mergekit(self, run: Run, tmp_path: Path, text: str) -> None:
        file, out = tmp_path / "merge.yaml", tmp_path / "theirs"
        job = run(yaml.safe_dump({"merge_method": "passthrough", **yaml.safe_load(text)}))
        save_model(job.pool, job.plan.weights(job.pool), tmp_path / "out")
        main = "from mergekit.scripts.run_yaml import main; main()"
        python = os.environ["EVOMERGE_MERGEKIT_PYTHON"]
        options = ["--no-write-model-card", "--no-copy-tokenizer"]  # these would ask the network
        subprocess.run([python, "-c", main, str(file), str(out), *options], check=True)
        assert_same(tmp_path / "out", load_file(out / "model.safetensors"))


def assert_same(model: Path, wanted: Mapping[str, Tensor]) -> None:
    found = load_file(model / "model.safetensors")
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)


def by_hand(content: Any, zoo: Path) -> tuple[dict[str, Tensor], int]:
    """Returns tensors and depth, computed in mergekit's words: name by name, slice by slice."""
    merged: dict[str, Tensor] = {}
    slices = content.get("slices") or [{"sources": content["models"]}]
    place, outside = 0, []
    for piece in slices:
        (source,) = piece["sources"]
        state = load_file(zoo / source["model"] / "model.safetensors")
        scopes = [owner.get("parameters", {}) for owner in (source, piece, content)]
        outside.append((state, scopes))
        first, stop = source.get("layer_range", [0, LAYERS])
        for layer in range(first, stop):
            t = (layer - first) / (stop - first - 1) if stop - first > 1 else 1.0
            prefix = f"model.layers.{layer}."
            for name in (name for name in state if name.startswith(prefix)):
                target = f"model.layers.{place}.{name.removeprefix(prefix)}"
                merged[target] = state[name] * scale_by_hand(scopes, name, t)
            place += 1
    for name, i in (("model.embed_tokens", 0), ("model.norm", -1), ("lm_head", -1)):
        state, scopes = outside[i]
        merged[f"{name}.weight"] = state[f"{name}.weight"] * scale_by_hand(
            scopes, f"{name}.weight", 0.0
        )
    return merged, place


def scale_by_hand(scopes: list[Any], name: str, t: float) -> float:
    for scope in scopes:
        given = scope.get("scale", [])
        if not isinstance(given, list) or not all(isinstance(e, dict) for e in given):
            given = [{"value": given}]
        for entry in given:
            if entry.get("filter", "") in name:
                values = np.atleast_1d(np.asarray(entry["value"], dtype=float))
                return float(np.interp(t, np.linspace(0, 1, len(values)), values))
    return 1.0


SOURCES = (BASE, "code", "prose")


class TestWriting:
    @pytest.fixture(scope="class")
    def pool(self, zoo: Path) -> ExpertPool:
        return ExpertPool.open(str(zoo / "base"), {name: str(zoo / name) for name in SOURCES[1:]})

    @settings(
        max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        places=st.lists(
            st.builds(
                StackedLayer,
                st.integers(0, LAYERS - 1),
                st.sampled_from(SOURCES),
                st.sampled_from([1.0, 1.0, 0.0, -0.5]),
            ),
            min_size=1,
            max_size=7,
        ),
        outer=st.sampled_from(SOURCES),
        behind=st.sampled_from([None, *SOURCES]),
        factors=st.dictionaries(
            st.sampled_from(
                [
                    "model.layers.0.mlp.down_proj.weight",
                    "model.layers.0.mlp.up_proj.weight",
                    "model.norm.weight",
                    "model.embed_tokens.weight",
                ]
            ),
            st.sampled_from([0.25, 2.0]),
        ),
    )
    def test_read_back_it_gives_the_same_weights(
        self,
        pool: ExpertPool,
        tmp_path: Path,
        places: list[StackedLayer],
        outer: str,
        behind: str | None,
        factors: dict[str, float],
    ) -> None:
        plan = LayerStackPlan(tuple(places), outer, None, behind, factors)
        assert Recipe.from_json(Recipe.of(pool, plan).to_json()).plan == plan
        (tmp_path / "merge.yaml").write_text(to_mergekit(Recipe.of(pool, plan), pool))
        job = from_mergekit(tmp_path / "merge.yaml")
        before, after = plan.weights(pool), job.plan.weights(job.pool)
        assert list(after) == list(before)
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=0)

    def test_layers_of_a_merge_are_refused(self, pool: ExpertPool) -> None:
        merge = uniform_plan(Linear(), Whole(), pool)
        plan = LayerStackPlan((StackedLayer(0, MERGED),), BASE, merge)
        with pytest.raises(MergekitError, match=r"takes layers of models, not of a merge: save"):
            to_mergekit(Recipe.of(pool, plan), pool)


def test_an_adapter_is_baked_in(run: Run, zoo: Path) -> None:
    job = run("{merge_method: passthrough, models: [{model: base+adapter}]}")
    pool = ExpertPool.open(str(zoo / "base"), {"adapter": str(zoo / "adapter")})
    own, weights = pool.expert_weights("adapter"), job.plan.weights(job.pool)
    assert all(torch.equal(weights[name], own[name]) for name in pool.names)


def test_a_model_called_base(tmp_path: Path) -> None:
    """Which is the word for the base in a layer stack."""
    for number in (1, 2):
        builders.llama(tmp_path / str(number) / "base", seed=number)
    file = tmp_path / "merge.yaml"
    models = [str(tmp_path / str(number) / "base") for number in (1, 2)]
    sources = [{"sources": [{"model": model, "layer_range": [0, 1]}]} for model in models]
    file.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": sources}))
    job = from_mergekit(file)
    second = load_file(tmp_path / "2" / "base" / "model.safetensors")
    found = job.plan.weights(job.pool)["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(found, second["model.layers.0.mlp.up_proj.weight"])


ONE = "{model: code, layer_range: [0, 1]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one of models and slices, got both or none"),
        ("models: [{model: code}, {model: prose}]", "takes one model at a time, got 2: name one"),
        ("slices: {}", r"slices: expected a list of \{sources"),
        ("slices: [3]", r"slices: 3 is no \{sources: \[\{model, layer_range\}\]\}"),
        ("slices: [{sources: [{layer_range: [0, 1]}]}]", r"slices: .* is no \{model: ID or"),
        ("slices: [{sources: [{model: code}]}]", "layer_range None is no"),
        ("slices: [{sources: [{model: code, layer_range: [0, x]}]}]", "layer_range .* is no"),
        (
            "slices: [{sources: [{model: code, layer_range: [3, 6]}]}]",
            r"layer_range \[3, 6\] does not lie in code, which has 5 layers",
        ),
        (f"slices: [{{sources: [{ONE}], residual_weight: 1}}]", "residual_weight: is not support"),
        (f"slices: [{{sources: [{ONE}], parameters: {{sclae: 1}}}}]", "'sclae' is no parameter"),
        (
            f"slices: [{{sources: [{ONE}], parameters: {{scale: no}}}}]",
            "scale needs a number, got False",
        ),
        (f"base_model: [code]\nslices: [{{sources: [{ONE}]}}]", "base_model: .* is no model"),
    ],
)
def test_refusals(run: Run, text: str, message: str) -> None:
    with pytest.raises(MergekitError, match=message):
        run(f"merge_method: passthrough\n{text}")


def test_no_layer_at_all(run: Run) -> None:
    job = run(
        "{merge_method: passthrough, slices: [{sources: [{model: code, layer_range: [1, 1]}]}]}"
    )
    with pytest.raises(MergeError, match="the layer stack is empty"):
        job.plan.weights(job.pool)
