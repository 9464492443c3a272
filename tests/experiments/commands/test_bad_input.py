"""Checkpoints and data that cannot be used: one sentence with the remedy, before any long work."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoints.experts import ExpertPool
from merging.saving import shards
from search.loop import generational
from tests import builders
from tests.experiments.local import overrides, write_texts
from tests.experiments.refusals import Shell

DOWN = "model.layers.0.mlp.down_proj.weight"


class Trap:
    """Unpickling it leaves a file behind."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("trapped"),)  # type: ignore[return-value]


@pytest.fixture
def expert(world: Path, tmp_path: Path) -> Path:
    """A copy of an expert, to be damaged."""
    return Path(shutil.copytree(world / "base-code", tmp_path / "bad"))


def code(path: Path | str) -> str:
    return f"experts.experts.code={path}"


def change(path: Path, name: str, damage: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = damage(tensors[name].clone()).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


def with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def damage(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return damage


@pytest.mark.usefixtures("idle")
class TestCheckpoints:
    @pytest.mark.parametrize("verb", ["search", "check"])
    def test_missing_base(self, shell: Shell, world: Path, verb: str) -> None:
        wrong = f"experts.base={world}/gone"
        shell.refuse("/gone does not exist; expected a checkp", verb, *overrides(world), wrong)

    def test_missing_expert(self, shell: Shell, world: Path) -> None:
        wrong = code(world / "gone")
        shell.refuse("/gone does not exist; expected a check", "search", *overrides(world), wrong)

    def test_unknown_id(self, shell: Shell, world: Path) -> None:
        pattern = "'nobody/nothing' is no directory here and no Hugging Face id .*correct the name"
        shell.refuse(pattern, "search", *overrides(world), code("nobody/nothing"))

    def test_no_experts(self, shell: Shell, world: Path) -> None:
        line = [o for o in overrides(world) if not o.startswith("experts.experts")]
        pattern = "the pool has no experts; name at least one under experts"
        shell.refuse(pattern, "search", *line, "experts.experts={}")
        shell.refuse("experts.experts is not set: give 'experts={NAME:DIR,...}'", "search", *line)

    def test_other_architecture(self, shell: Shell, world: Path, tmp_path: Path) -> None:
        other = builders.qwen2(tmp_path / "qwen2")
        pattern = "expert 'code' .* architecture 'qwen2', the base .* 'llama'; all experts must"
        shell.refuse(pattern, "search", *overrides(world), code(other))

    @pytest.mark.parametrize(
        ("size", "pattern"),
        [
            ({"hidden_size": 64}, "has 64 hidden units .*hidden_size.*has 32; use experts fine"),
            ({"vocab_size": 300}, "has 300 vocabulary entries .*vocab_size.*has 259; use expe"),
            ({"num_hidden_layers": 3}, "has 3 layers .*num_hidden_layers.*has 2; use experts"),
        ],
    )
    def test_other_size(
        self, shell: Shell, world: Path, tmp_path: Path, size: dict[str, Any], pattern: str
    ) -> None:
        other = builders.llama(tmp_path / "other", **size)
        shell.refuse(f"expert 'code' .*{pattern}", "search", *overrides(world), code(other))

    def test_tensor_of_other_shape(self, shell: Shell, world: Path, expert: Path) -> None:
        change(expert, DOWN, lambda tensor: tensor[:-1])
        pattern = rf"/bad: {DOWN} has shape \(31, 64\), its config.json asks for \(32, 64\)"
        shell.refuse(pattern, "search", *overrides(world), code(expert))

    def test_truncated_file(self, shell: Shell, world: Path, expert: Path) -> None:
        file = expert / "model.safetensors"
        file.write_bytes(file.read_bytes()[:70_000])
        pattern = "bad/model.safetensors is truncated .* not 70000; download or copy it again"
        shell.refuse(pattern, "search", *overrides(world), code(expert))

    def test_corrupt_file(self, shell: Shell, world: Path, expert: Path) -> None:
        file = expert / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[:8] + b"\xff" * 64 + content[72:])
        pattern = "bad/model.safetensors has a corrupt header .*; download or copy it again"
        shell.refuse(pattern, "search", *overrides(world), code(expert))

    @pytest.mark.parametrize(
        ("name", "pattern"),
        [
            (
                "pytorch_model.bin",
                "_model.bin is a pickle .* may run code; convert .* safetensors",
            ),
            ("model.pt", "bad holds no weights; expected model.safetensors, .*pytorch_model.bin"),
        ],
    )
    def test_pickle(
        self, shell: Shell, world: Path, expert: Path, name: str, pattern: str
    ) -> None:
        (expert / "model.safetensors").unlink()
        torch.save({"weight": Trap()}, expert / name)
        shell.refuse(pattern, "search", *overrides(world), code(expert))

    def test_old_pickle(self, shell: Shell, world: Path, expert: Path) -> None:
        (expert / "model.safetensors").unlink()
        (expert / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Trap()}))
        pattern = "pytorch_model.bin is a pickle .* may run code; convert the checkpoint to safet"
        shell.refuse(pattern, "search", *overrides(world), code(expert))

    def test_adapter_of_another_base(self, shell: Shell, world: Path, tmp_path: Path) -> None:
        other = builders.llama(tmp_path / "other", hidden_size=64)
        adapter = builders.lora_adapter(tmp_path / "adapter", other)
        pattern = "adapter .*q_proj.weight has shape .*64, 64.*32, 32.*; it belongs to another ba"
        shell.refuse(pattern, "search", *overrides(world), code(adapter))

    @pytest.mark.parametrize("role", ["base", "experts.code"])
    def test_remote_code(self, shell: Shell, world: Path, expert: Path, role: str) -> None:
        config = json.loads((expert / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}
        (expert / "config.json").write_text(json.dumps(config))
        pattern = "bad wants to run code of its own .*; read that code, then set trust_remote_code"
        shell.refuse(pattern, "search", *overrides(world), f"experts.{role}={expert}")

    def test_slerp_of_three(self, shell: Shell, world: Path) -> None:
        pattern = "slerp merges exactly 2 experts, 3 given: select other experts or another method"
        shell.refuse(pattern, "search", *overrides(world), "method=slerp")


class TestWeights:
    """Found by reading all weights, and still before anything is evaluated or written."""

    @pytest.fixture(autouse=True)
    def _no_evaluation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ExpertPool, "resident", lambda *_: pytest.fail("weights are held"))
        monkeypatch.setattr(generational, "Session", lambda *_: pytest.fail("the search began"))

    def test_nan_in_expert(self, shell: Shell, world: Path, expert: Path) -> None:
        change(expert, DOWN, with_first(float("nan")))
        pattern = rf"expert 'code' \(.*bad\): tensor {DOWN} holds 1 values that are NaN.*use an in"
        for verb in ("search", "check"):
            shell.refuse(pattern, verb, *overrides(world), code(expert))

    def test_infinity_in_base(self, shell: Shell, world: Path, expert: Path) -> None:
        change(expert, DOWN, with_first(float("-inf")))
        wrong = f"experts.base={expert}"
        pattern = rf"base .*bad: tensor {DOWN} holds 1 values that are NaN or inf.*use an intact"
        shell.refuse(pattern, "search", *overrides(world), wrong)

    def test_nan_in_a_static_merge(self, shell: Shell, world: Path, expert: Path) -> None:
        change(expert, DOWN, with_first(float("nan")))
        experts = f"experts.experts={{code:{expert},prose:{world}/base-prose}}"
        line = ["experts=local", f"experts.base={world}/base", experts, "out=merged"]
        shell.refuse(f"expert 'code' .*tensor {DOWN} holds 1 values", "merge", *line)

    def test_disk_that_fills_while_the_model_is_written(
        self, shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(shards, "_write_shard", full)
        experts = f"experts.experts={{code:{world}/base-code,prose:{world}/base-prose}}"
        line = ["experts=local", f"experts.base={world}/base", experts, "device=cpu", "out=merged"]
        pattern = r"cannot write the model to .*merged \(No space left on device\); free space th"
        shell.refuse(pattern, "merge", *line)

    def test_nan_in_an_evaluated_model(self, shell: Shell, world: Path, expert: Path) -> None:
        change(expert, "lm_head.weight", with_first(float("nan")))
        data = ["evaluator@report_on=perplexity", f"report_on.text.data={world}/report.jsonl"]
        pattern = "bad.*tensor lm_head.weight holds 1 values that are NaN .*use an intact checkp"
        shell.refuse(
            pattern, "evaluate", f"model={expert}", *data, "device=cpu", "out=scores.json"
        )


@pytest.mark.usefixtures("idle")
class TestData:
    @pytest.mark.parametrize("other", ["select_on", "report_on"])
    def test_same_split_twice(self, shell: Shell, world: Path, other: str) -> None:
        same = f"{other}.text.data={world}/search.jsonl"
        pattern = "search task 'text' and .* task 'text' both read .*search.jsonl.*; give them dif"
        shell.refuse(pattern, "search", *overrides(world), same)

    def test_report_on_what_was_selected_on(self, shell: Shell, world: Path) -> None:
        same = f"select_on.text.data={world}/report.jsonl"
        pattern = "selection task 'text' and report task 'text' both read .*; give them different"
        shell.refuse(pattern, "check", *overrides(world), same)

    def test_overlapping_items(self, shell: Shell, world: Path, tmp_path: Path) -> None:
        data = write_texts(tmp_path / "overlap.jsonl", first=2)  # 2 to 5; the search has 0 to 3
        pattern = (
            "search task 'text' and report task 'text' share 2 of 4 items, .*give them differ"
        )
        line = [*overrides(world), f"report_on.text.data={data}"]
        shell.refuse(pattern, "search", *line, "overlap=refuse")
        private = ["privacy=means", "privacy.data=d", "privacy.public=[selection,report]"]
        private += ["in_hull=null", "strategy=random"]  # who is dropped would tell who is private
        shell.refuse(pattern, "search", *line, *private)
        pattern = "overlap=drip: expected 'drop' or 'refuse'"
        shell.refuse(pattern, "search", *line, "overlap=drip")

    @pytest.mark.parametrize(
        ("content", "pattern"),
        [
            (b"", "data.jsonl is empty: name a file that holds items"),
            (b" \n\n", "data.jsonl is empty: name a file that holds items"),
            (b"{", "data.jsonl line 1 is not JSON"),
            (b'{"txt": "a"}', "data.jsonl line 1: no field 'text'; it has txt"),
            (b'{"text": " "}', "data.jsonl line 1: field 'text' is empty; remove the line"),
            (b"\xff\xfe", "data.jsonl is not UTF-8 text .*: convert it"),
        ],
    )
    def test_data_file(
        self, shell: Shell, world: Path, tmp_path: Path, content: bytes, pattern: str
    ) -> None:
        data = tmp_path / "data.jsonl"
        data.write_bytes(content)
        shell.refuse(pattern, "search", *overrides(world), f"report_on.text.data={data}")

    def test_missing_data_file(self, shell: Shell, world: Path) -> None:
        wrong = f"report_on.text.data={world}/gone.jsonl"
        pattern = "data file .*gone.jsonl does not exist: correct its path"
        shell.refuse(pattern, "search", *overrides(world), wrong)

    def test_take_beyond_the_end(self, shell: Shell, world: Path) -> None:
        pattern = "search.jsonl: take 0:9 does not fit its 4 items"
        shell.refuse(pattern, "search", *overrides(world), "search_on.text.take='0:9'")


@pytest.mark.usefixtures("idle")
class TestHarnessTasks:
    @pytest.fixture
    def line(self, world: Path, tmp_path: Path) -> list[str]:
        """A search on an lm-eval task with local data."""
        items = [{"q": f"{i} and", "c": ["one", "two"], "a": i % 2} for i in range(6)]
        data = tmp_path / "items.jsonl"
        data.write_text("\n".join(map(json.dumps, items)))
        (tmp_path / "own.yaml").write_text(
            f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
            "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\n"
            "doc_to_target: a\nmetric_list: [{metric: acc, higher_is_better: true}]\n"
        )
        given = ("evaluator@search_on", "search_on.text")
        kept = [o for o in overrides(world) if not o.startswith(given)]
        return [
            *kept,
            "evaluator@search_on=lm_eval",
            "search_on.task.task=own",
            f"search_on.task.include_path={tmp_path}",
        ]

    def test_unknown_task(self, shell: Shell, line: list[str]) -> None:
        pattern = "no lm-eval task 'arc_eazy' among its own or in .*; near it are arc_easy"
        shell.refuse(pattern, "search", *line, "search_on.task.task=arc_eazy")

    @pytest.mark.parametrize("verb", ["search", "statistics"])
    def test_private_items_that_touch_more_than_their_own_score(
        self, shell: Shell, world: Path, line: list[str], tmp_path: Path, verb: str
    ) -> None:
        panel = "search_on" if verb == "search" else "gather_on"
        private = ["privacy=means", "in_hull=null", "strategy=random", "evaluator@select_on=none"]
        private += ["evaluator@report_on=none", "initial=average"]
        if verb == "statistics":
            private = ["kind=gram", "out=stats", "privacy=statistics"]
            line = [one.replace("search_on", panel) for one in line]
            line = [one for one in line if one.startswith(("experts", "device", "eval", panel))]
        dropped = ("evaluator@select_on", "select_on", "evaluator@report_on", "report_on")
        line = [one for one in line if not one.startswith(dropped)]
        line = [verb, *line, *private, "privacy.data=d"]
        shown = "search task 'task' shows private items as examples .*: set num_fewshot=0, or the"
        shell.refuse(shown, *line, f"{panel}.task.num_fewshot=1")
        task = "_target_: evaluators.tasks.perplexity.Perplexity, _partial_: true, field: q"
        again = f"+{panel}.again={{{task}, data: {tmp_path}/items.jsonl}}"
        shell.refuse("both read .*items.jsonl, of which a record would contr", *line, again)
        shell.refuse("would allow to give one of the 6 sear", *line, "privacy.delta=0.2")

    def test_unknown_metric(self, shell: Shell, line: list[str]) -> None:
        pattern = "lm-eval task 'own' has no metric 'f1'; it has acc"
        shell.refuse(pattern, "search", *line, "search_on.task.metric=f1")

    def test_same_items_twice(self, shell: Shell, line: list[str], tmp_path: Path) -> None:
        twice = [
            "evaluator@report_on=lm_eval",
            "report_on.task.task=own",
            f"report_on.task.include_path={tmp_path}",
        ]
        kept = [o for o in line if not o.startswith(("evaluator@report_on", "report_on.text"))]
        pattern = "search task 'task' and report task 'task' both read .*; give them different it"
        shell.refuse(pattern, "search", *kept, *twice)
        parts = ["search_on.task.take='0:4'", "report_on.task.take='3:6'", "overlap=refuse"]
        pattern = "search task 'task' and report task 'task' share 1 of 4 items, .*; give them dif"
        shell.refuse(pattern, "search", *kept, *twice, *parts)
