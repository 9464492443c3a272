"""Gradients, filters and their places in mergekit files, and what else a file may say."""

import logging
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging.checkpoints.experts import ExpertPool
from merging.grouping import PerTensor, Whole
from merging.mergekit_yaml.reading import MergekitJob, from_mergekit
from tests import builders
from tests.merging.mergekit_yaml.mergekit_files import LAYERS, Run


def depth(name: str) -> float:
    """As mergekit sees it: linear over the layers, 0 outside of them."""
    parts = name.split(".")
    return int(parts[2]) / (LAYERS - 1) if parts[1] == "layers" else 0.0


def along(values: list[float], name: str) -> float:
    at = depth(name) * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


class TestParameters:
    def weights(self, job: MergekitJob, expert: str = "code") -> dict[str, float]:
        groups = job.plan.grouping.assign(job.pool.names)
        table = job.plan.coefficients
        return {n: table[g]["weight"][expert] for n, g in groups.items()}  # type: ignore[index]

    def linear(self, run: Run, weight: str, extra: str = "") -> dict[str, float]:
        return self.weights(
            run(
                "merge_method: linear\nmodels:\n"
                f"  - {{model: code, parameters: {{weight: {weight}}}}}\n"
                "  - {model: prose, parameters: {weight: 1}}\n" + extra
            )
        )

    @settings(
        max_examples=20,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(values=st.lists(st.floats(-2, 2), min_size=1, max_size=7))
    def test_gradients_run_over_the_layers(self, run: Run, values: list[float]) -> None:
        for name, weight in self.linear(run, str(values)).items():
            assert weight == pytest.approx(along(values, name), abs=1e-12)

    def test_gradients_give_their_first_value_outside_the_layers(self, run: Run) -> None:
        weights = self.linear(run, "[0.25, 1]")
        assert {weights[n] for n in weights if ".layers." not in n} == {0.25}
        assert weights["model.layers.0.mlp.up_proj.weight"] == 0.25
        assert weights["model.layers.4.mlp.up_proj.weight"] == 1.0

    def test_first_filter_that_fits_counts(self, run: Run) -> None:
        weights = self.linear(
            run,
            "[{filter: o_proj, value: 4}, {filter: self_attn, value: 3}, "
            "{filter: '*', value: 2}, {value: 1}]",
        )
        for name, weight in weights.items():
            assert weight == (4 if "o_proj" in name else 3 if "self_attn" in name else 2)

    def test_where_no_filter_fits_the_next_place_is_asked(self, run: Run) -> None:
        weights = self.linear(
            run,
            "{filter: mlp, value: 3}",
            "parameters: {weight: [{filter: self_attn, value: 2}, {value: 0.5}]}\n",
        )
        for name, weight in weights.items():
            assert weight == (3 if "mlp" in name else 2 if "self_attn" in name else 0.5)

    def test_parameters_of_the_slice_come_before_those_of_the_file(self, run: Run) -> None:
        source = f"layer_range: [0, {LAYERS}]"
        job = run(f"""
            merge_method: slerp
            base_model: base
            slices:
              - sources: [{{model: base, {source}}}, {{model: code, {source}}}]
                parameters: {{t: 0.75}}
            parameters: {{t: 0.1}}
            """)
        assert set(self.weights(job).values()) == {0.75}

    def test_one_value_for_all_makes_one_group(self, run: Run) -> None:
        text = "merge_method: linear\nmodels: [{model: code, parameters: {weight: WEIGHT}}]"
        assert run(text.replace("WEIGHT", "[{value: 2}]")).plan.grouping == Whole()
        assert run(text.replace("WEIGHT", "[1, 2]")).plan.grouping == PerTensor()

    def test_filters_see_the_names_in_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ViT's files say encoder.layer where transformers 5 says layers."""
        monkeypatch.chdir(tmp_path)
        base = builders.vit_classifier(tmp_path / "base", encoder=True)
        builders.vit_classifier(tmp_path / "digits", like=base, seed=1)
        pool = ExpertPool.open("base", {"digits": "digits"})
        names = pool.base.file_names
        assert names is not None
        name, in_file = next((n, f) for n, f in names.items() if n != f)
        (tmp_path / "merge.yaml").write_text(
            "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: digits\n"
            f"    parameters: {{weight: [{{filter: {in_file}, value: 5}}, {{value: 1}}]}}\n"
        )
        job = from_mergekit(tmp_path / "merge.yaml")
        assert job.plan.coefficients[name]["weight"] == {"digits": 5.0}

    def test_a_single_layer_is_the_last_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        builders.llama(tmp_path / "one", num_hidden_layers=1)
        (tmp_path / "merge.yaml").write_text(
            "merge_method: linear\nmodels: [{model: one, parameters: {weight: [2, 3]}}]"
        )
        job = from_mergekit(tmp_path / "merge.yaml")
        weights = self.weights(job, "one")
        assert weights["model.layers.0.mlp.up_proj.weight"] == 3.0
        assert weights["model.embed_tokens.weight"] == 2.0

    def test_what_mergekit_ignores_is_ignored_with_a_warning(
        self, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            run("""
                merge_method: slerp
                base_model: base
                models: [{model: base}, {model: code, parameters: {weight: 0.3}}]
                parameters: {t: 0.5, density: 0.2}
                """)
        assert "parameters of code: merge_method slerp reads no weight; ignored" in caplog.text
        assert "parameters: merge_method slerp reads no density; ignored" in caplog.text


class TestFiles:
    def test_dtypes(self, run: Run) -> None:
        text = "merge_method: linear\nmodels: [{model: code, parameters: {weight: 1}}]\n"
        assert run(text).dtype is None
        assert run(text + "dtype: bfloat16").dtype == torch.bfloat16
        assert run(text + "dtype: float32\nout_dtype: float16").dtype == torch.float16

    @pytest.mark.parametrize(
        "extra",
        [
            "tokenizer_source: base",
            "tokenizer_source: ./base",
            "tokenizer: {source: base}",
            "tokenizer_source: null",
            "name: my-merge",
        ],
    )
    def test_harmless_keys(self, run: Run, extra: str) -> None:
        run(
            "merge_method: task_arithmetic\nbase_model: ./base\n"
            f"models: [{{model: code, parameters: {{weight: 1}}}}]\n{extra}"
        )

    def test_names_of_experts_are_short_and_unique(self, run: Run, zoo: Path) -> None:
        job = run(f"""
            merge_method: linear
            models:
              - {{model: code, parameters: {{weight: 1}}}}
              - {{model: {zoo}/code/, parameters: {{weight: 1}}}}
              - {{model: ./prose, parameters: {{weight: 1}}}}
            """)
        assert job.pool.expert_names == ("code", "code-2", "prose")

    def test_adapters_stand_behind_their_base(self, run: Run, zoo: Path) -> None:
        for base in ("base_model: base\n", ""):
            method = "task_arithmetic" if base else "linear"
            job = run(
                f"{base}merge_method: {method}\n"
                "models: [{model: base+adapter, parameters: {weight: 1}}]"
            )
            assert job.pool.base.source == "base"
            assert job.pool.sources == {"adapter": "adapter"}
            weights = job.plan.weights(job.pool)
            for name, tensor in job.pool.expert_weights("adapter").items():
                torch.testing.assert_close(weights[name], tensor)

    def test_gradients_count_layers_that_no_adapter_touches(
        self, zoo: Path, run: Run, tmp_path: Path
    ) -> None:
        some = builders.lora_adapter(tmp_path / "some", zoo / "base", layers_to_transform=[0, 2])
        job = run(
            "merge_method: task_arithmetic\nbase_model: base\n"
            f"models: [{{model: base+{some}, parameters: {{weight: [0, 1]}}}}]"
        )
        weight = job.plan.coefficients["model.layers.2.self_attn.q_proj.weight"]["weight"]
        assert weight == {"some": 0.5}
