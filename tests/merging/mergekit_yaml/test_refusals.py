"""mergekit files that are refused, and the sentence that says why."""

from pathlib import Path

import pytest

from merging.mergekit_yaml.reading import from_mergekit
from merging.mergekit_yaml.spelling import MergekitError
from merging.method import MergeError
from merging.weights import CheckpointError
from tests.merging.mergekit_yaml.mergekit_files import EXPERTS, Run

ONE = "models: [{model: code, parameters: {weight: 1}}]\n"
TWO = "models: [{model: code}, {model: prose}]\n"


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", r"merge\.yaml: not YAML"),
            ("just text", "there is no merge_method: this is no mergekit merge"),
            (TWO, "there is no merge_method"),
            ("merge_method: magic\n" + TWO, "merge_method 'magic' is not supported"),
            ("merge_method: arcee_fusion\n" + TWO, "'arcee_fusion' is not supported: expected"),
            ("merge_method: ties\n" + ONE, "merge_method ties needs a base_model"),
            ("merge_method: slerp\n" + TWO, "merge_method slerp needs a base_model"),
            ("merge_method: linear\n", "expected one of models and slices, got both or none"),
            (
                "merge_method: linear\nslices: []\n" + ONE,
                "expected one of models and slices, got both",
            ),
            ("merge_method: linear\nmodels: []", r"models: expected a list of \{model"),
            ("merge_method: linear\nmodels: code", r"models: expected a list of \{model"),
            ("merge_method: linear\nmodels: [code]", r"models: code is no \{model: ID"),
            ("merge_method: linear\nmodels: [{weight: 1}]", r"models: .* is no \{model: ID"),
            (
                "merge_method: linear\nmodels: [{model: code, wait: 1}]",
                "models: wait: is not supported: remove the key",
            ),
            (
                "merge_method: linear\nmodels: [{model: code}, {model: code}]",
                "models: code is listed twice",
            ),
            (
                "merge_method: linear\nmodels: [{model: code, parameters: 3}]",
                "parameters of code: expected parameter: value, got 3",
            ),
            ("merge_method: linear\nparameters: [1]\n" + ONE, "parameters: expected parameter"),
            ("merge_method: linear\nmodules: {}\n" + ONE, "modules: .* is not supported: remove"),
            (
                "merge_method: linear\ntokenizer_source: other\n" + ONE,
                "tokenizer_source: other is not supported: expected union or base",
            ),
            (
                "merge_method: linear\ntokenizer: {source: base, tokens: {}}\n" + ONE,
                "tokenizer: .* is not supported",
            ),
            ("merge_method: linear\nchat_template: auto\n" + ONE, "chat_template: auto is not"),
            ("merge_method: linear\ndtype: int8\n" + ONE, "dtype: dtype 'int8' is unknown"),
            ("merge_method: linear\nout_dtype: [1]\n" + ONE, "out_dtype: dtype"),
            (
                "merge_method: linear\nbase_model: [a]\n" + ONE,
                r"base_model: \['a'\] is no model",
            ),
            (
                "merge_method: linear\nmodels: [{model: code@main}]",
                "model code@main: a revision behind @ is not supported: download it",
            ),
            ("merge_method: linear\nmodels: [{model: a+b+c}]", "expected one adapter behind"),
            (
                "merge_method: linear\nmodels: [{model: a+adapter}, {model: b+adapter}]",
                "adapters of a and of b cannot be merged: use one base",
            ),
            (
                "merge_method: slerp\nbase_model: code\nmodels: "
                "[{model: code}, {model: prose}, {model: maths}]",
                "merge_method slerp merges exactly 2 models, 3 given",
            ),
            (
                "merge_method: nuslerp\nbase_model: code\n" + TWO,
                "nuslerp merges exactly 2 models beside the base_model, 1 given",
            ),
            (
                "merge_method: model_stock\nbase_model: base\n" + ONE,
                "model_stock merges at least 2 models beside the base_model, 1 given",
            ),
            (
                "merge_method: nearswap\nbase_model: base\n" + TWO,
                "nearswap merges exactly 1 model beside the base_model, 2 given",
            ),
            (
                "merge_method: ties\nbase_model: base\nmodels: [{model: base}]",
                "merges at least 1 model beside the base_model, 0 given",
            ),
        ],
    )
    def test_of_the_form(self, run: Run, text: str, message: str) -> None:
        with pytest.raises(MergekitError, match=message):
            run(text)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ("{wieght: 1}", "parameters of code: 'wieght' is no parameter of merge_method ties"),
            ("{weight: 1, lambda: 2}", "mergekit reads lambda for the whole merge, not for one"),
            ("{weight: 1, normalize: true}", "reads normalize for the whole merge"),
            ("{}", "merge_method ties needs a weight for code at model.embed_tokens.weight"),
            (
                "{weight: [{filter: mlp, value: 1}]}",
                "needs a weight for code at .* without filter",
            ),
            ("{weight: []}", "needs a weight for code"),
            ("{weight: heavy}", "weight needs a number, got 'heavy'"),
            ("{weight: null}", "weight needs a number, got None"),
            ("{weight: true}", "weight needs a number, got True"),
            ("{weight: [1, two]}", "weight needs a number, got 'two'"),
            ("{weight: [1, [2]]}", r"weight: 1 is no \{filter, value\}"),
            ("{weight: [{filter: mlp}]}", r"weight: .* is no \{filter, value\}"),
            ("{weight: [{fitler: mlp, value: 1}]}", r"weight: .* is no \{filter, value\}"),
        ],
    )
    def test_of_parameters(self, run: Run, parameters: str, message: str) -> None:
        models = f"models: [{{model: code, parameters: {parameters}}}]\n"
        with pytest.raises(MergekitError, match=message):
            run("merge_method: ties\nbase_model: base\n" + models)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("ties PARAMETERS {normalise: true}", "parameters: 'normalise' is no parameter"),
            ("ties PARAMETERS {normalize: 1}", "normalize needs true or false, got 1"),
            ("ties PARAMETERS {rescale: true}", "rescale: True is not supported with ties"),
            ("karcher PARAMETERS {max_iter: 2.5}", "max_iter needs a whole number, got 2.5"),
            ("karcher PARAMETERS {tol: small}", "tol needs a number, got 'small'"),
            ("model_stock PARAMETERS {filter_wise: true}", "filter_wise: True is not supported"),
            ("multislerp PARAMETERS {normalize_weights: false}", "normalize_weights: False is"),
            ("nearswap PARAMETERS {}", "merge_method nearswap needs a t at"),
        ],
    )
    def test_of_options(self, run: Run, text: str, message: str) -> None:
        count = 1 if text.startswith("nearswap") else 2
        models = ", ".join(f"{{model: {e}, parameters: {{weight: 1}}}}" for e in EXPERTS[:count])
        text = text.replace(
            " PARAMETERS ", f"\nbase_model: base\nmodels: [{models}]\nparameters: "
        )
        with pytest.raises(MergekitError, match=message):
            run(f"merge_method: {text}")

    def test_of_nuslerp_without_base_by_rows(self, run: Run) -> None:
        with pytest.raises(MergekitError, match="nuslerp_flatten: false needs a base_model here"):
            run("merge_method: nuslerp\nparameters: {nuslerp_flatten: false}\n" + TWO)

    @pytest.mark.parametrize(
        ("slices", "message"),
        [
            ("[{sources: [{model: code, layer_range: [0, 4]}]}]", r"layer_range \[0, 4\] is not"),
            ("[{sources: [{model: code, layer_range: [1, 5]}]}]", r"layer_range \[1, 5\] is not"),
            ("[{sources: [{model: code, layer_range: 5}]}]", "layer_range 5 is not the whole"),
            (
                "[{sources: [{model: code, layer_range: [0, 2]}]}, "
                "{sources: [{model: code, layer_range: [2, 5]}]}]",
                "slices: layers are not re-ordered here: give models, or one slice",
            ),
            ("[code]", "slices: layers are not re-ordered here"),
            ("{sources: [{model: code}]}", "slices: layers are not re-ordered here"),
            ("[{sources: []}]", r"sources: expected a list of \{model"),
            ("[{parameters: {}}]", r"sources: expected a list of \{model"),
            ("[{sources: [{model: code}], residual_weight: 1}]", "slices: residual_weight: is"),
        ],
    )
    def test_of_slices(self, run: Run, slices: str, message: str) -> None:
        text = f"merge_method: linear\nslices: {slices}\nparameters: {{weight: 1}}\n"
        with pytest.raises(MergekitError, match=message):
            run(text)

    def test_of_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(MergekitError, match=r"gone\.yaml: cannot be read"):
            from_mergekit(tmp_path / "gone.yaml")

    def test_of_a_missing_model(self, run: Run) -> None:
        with pytest.raises(CheckpointError, match="gone does not exist"):
            run("merge_method: linear\nmodels: [{model: ./gone, parameters: {weight: 1}}]")

    def test_of_a_density_out_of_range(self, run: Run) -> None:
        job = run(
            "merge_method: ties\nbase_model: base\n"
            "models: [{model: code, parameters: {weight: 1, density: 1.5}}]"
        )
        with pytest.raises(
            MergeError, match=r"'density' is 1.5 at group .*, expected a finite number in"
        ):
            job.plan.weights(job.pool)
