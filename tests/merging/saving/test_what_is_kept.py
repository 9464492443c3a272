"""What a merge does not change reaches the merged model as it was: what read the base reads it.

Configuration, tensors that no class uses or ties, and everything that lies beside the weights.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.saving import side_files
from merging.saving.save import save_model, saved_bytes
from merging.stacks.layer_stack import BASE, LayerStackPlan, StackedLayer
from tests import builders
from tests.merging.saving.test_save import mean, opened

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=1))  # no form that transformers writes
    return content


def add_tensors(path: Path, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    both = load_file(path / "model.safetensors") | tensors
    save_file(both, path / "model.safetensors", metadata={"format": "pt"})
    return both


def of_transformers_4(config: dict[str, Any]) -> None:
    for key in ("rope_parameters", "dtype"):
        config.pop(key, None)
    config |= {"rope_theta": 500000.0, "rope_scaling": None, "torch_dtype": "float32"}


class TestConfiguration:
    @pytest.mark.parametrize("converted", [False, True])
    def test_nothing_changes_where_the_merge_changes_nothing(
        self, tmp_path: Path, converted: bool
    ) -> None:
        base = mixtral(tmp_path / "base") if converted else builders.llama(tmp_path / "base")
        edit(base / "config.json", of_transformers_4)
        edit(base / "generation_config.json", lambda c: c.update(repetition_penalty=1.3))
        pool = opened(base, 1)
        save_model(pool, mean(pool), tmp_path / "out")
        for file in ("config.json", "generation_config.json"):
            assert (tmp_path / "out" / file).read_bytes() == (base / file).read_bytes()

    def test_another_dtype_goes_under_the_name_that_the_file_has_for_it(
        self, tmp_path: Path
    ) -> None:
        base = builders.llama(tmp_path / "base")
        content = edit(base / "config.json", of_transformers_4)
        pool = opened(base, 1)
        save_model(pool, mean(pool), tmp_path / "out", dtype=torch.bfloat16)
        saved = json.loads((tmp_path / "out/config.json").read_text())
        assert saved == content | {"torch_dtype": "bfloat16"}
        assert list(saved) == list(content)

    @pytest.mark.parametrize(
        ("build", "depth"), [(builders.gpt2, "n_layer"), (builders.qwen2, "num_hidden_layers")]
    )
    @pytest.mark.parametrize("lists", [False, True])
    def test_another_depth_changes_nothing_else(
        self, tmp_path: Path, build: Callable[..., Path], depth: str, lists: bool
    ) -> None:
        base = build(tmp_path / "base")
        content = edit(base / "config.json", lambda c: lists or c.pop("layer_types", None))
        pool = opened(base, 1)
        places = tuple(StackedLayer(i, BASE) for i in (0, 1, 1))
        save_model(pool, LayerStackPlan(places, BASE, None).weights(pool), tmp_path / "out")
        saved = json.loads((tmp_path / "out/config.json").read_text())
        changed = {depth: 3} | ({"layer_types": ["full_attention"] * 3} if lists else {})
        assert saved == content | {k: v for k, v in changed.items() if k in content}
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_heads_that_t5_files_hold_apart_are_merged_apart(tmp_path: Path, kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")
    architecture = getattr(transformers, f"{kind}ForConditionalGeneration")
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    torch.manual_seed(0)
    base = tmp_path / "base"
    architecture(config(vocab_size=64, decoder_start_token_id=0, **sizes)).save_pretrained(base)
    edit(base / "config.json", lambda c: c.update(tie_word_embeddings=False))
    tensors = add_tensors(base, **{"lm_head.weight": torch.randn(64, 32)})
    experts = {}
    for seed, name in enumerate("ab"):
        noise = torch.Generator().manual_seed(seed)
        experts[name] = str(shutil.copytree(base, tmp_path / name))
        moved = {k: v + 0.1 * torch.randn(v.shape, generator=noise) for k, v in tensors.items()}
        add_tensors(tmp_path / name, **moved)
    pool = ExpertPool.open(str(base), experts)
    merged = mean(pool)
    save_model(pool, merged, tmp_path / "out")
    state = architecture.from_pretrained(tmp_path / "out").state_dict()
    assert {"shared.weight", "lm_head.weight"} <= set(merged)
    assert all(torch.equal(state[name], merged[name]) for name in merged)
    assert not torch.equal(state["lm_head.weight"], state["shared.weight"])


def mixtral(path: Path) -> Path:
    """A model whose tensors transformers fuses between file and module."""
    sizes = {**SIZES, "intermediate_size": 32, "num_hidden_layers": 1, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**sizes, num_local_experts=2)
    transformers.MixtralForCausalLM(config).save_pretrained(path)
    return path


def ernie(path: Path) -> Path:
    """Fused, too, and of a class that knows of tensors that it does not read."""
    sizes = {**SIZES, "intermediate_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.Ernie4_5_MoeConfig(
        **sizes, moe_num_experts=2, moe_k=1, moe_intermediate_size=16, moe_layer_start_index=1
    )
    transformers.Ernie4_5_MoeForCausalLM(config).save_pretrained(path)
    return path


def qwen_next_layer(path: Path) -> Path:
    """The configuration promises one layer behind the last, as GLM's and DeepSeek's do."""
    builders.qwen2(path)
    edit(path / "config.json", lambda c: c.update(num_nextn_predict_layers=1))
    return path


UNUSED = {
    "mtp.fc.weight": torch.randn(32, 64, generator=torch.Generator().manual_seed(1)),
    "mtp.layers.0.self_attn.q_proj.weight": torch.ones(32, 32, dtype=torch.bfloat16),
}
BEHIND = {"model.layers.2.eh_proj.weight": torch.ones(32, 64, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    ("build", "unused", "limit"),
    [
        (ernie, UNUSED, 10**9),
        (ernie, UNUSED, 40_000),
        (qwen_next_layer, BEHIND, 10**9),
        (qwen_next_layer, BEHIND, 40_000),
    ],
)
def test_tensors_that_the_class_does_not_use_stay_bit_for_bit(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    build: Callable[[Path], Path],
    unused: dict[str, torch.Tensor],
    limit: int,
) -> None:
    base = build(tmp_path / "base")
    add_tensors(base, **unused)
    pool = opened(base, 1)
    assert (pool.base.file_names is None) == (build is ernie)
    merged = mean(pool)
    with caplog.at_level(logging.WARNING):
        save_model(pool, merged, tmp_path / "out", dtype=torch.float16, shard_bytes=limit)
    assert f"holds {len(unused)} tensors that " in caplog.text
    assert next(iter(unused)) in caplog.text
    saved = Checkpoint.open(str(tmp_path / "out"))
    for name, tensor in unused.items():
        assert saved.stored.dtype(name) == tensor.dtype
        assert torch.equal(saved.stored[name], tensor)
    assert all(torch.equal(saved[name], merged[name].half()) for name in merged)
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(state[name].half(), saved[name]) for name in saved)
    written = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert saved_bytes(pool, torch.float16) == pytest.approx(written, rel=0.2)


def test_what_only_an_expert_has_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = opened(qwen_next_layer(tmp_path / "base"), 1)
    expert = Path(pool.sources["code"])
    add_tensors(expert, **BEHIND)
    pool = ExpertPool.open(str(tmp_path / "base"), {"code": str(expert)})
    save_model(pool, mean(pool), tmp_path / "out")
    assert f"{expert} holds 1 tensors that Qwen2ForCausalLM does not use" in caplog.text
    assert "left out" in caplog.text


def test_a_base_that_holds_apart_what_its_configuration_ties_changes_its_depth(
    tmp_path: Path,
) -> None:
    base = builders.llama(tmp_path / "base", tie=True)
    embedding = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    add_tensors(base, **{"lm_head.weight": embedding + 1})
    pool = ExpertPool.open(str(base), {"same": str(base)})
    weights = LayerStackPlan(tuple(StackedLayer(i, BASE) for i in (0, 1, 1)), BASE, None)
    save_model(pool, weights.weights(pool), tmp_path / "out")
    state = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(state["lm_head.weight"], embedding + 1)
    assert torch.equal(state["model.embed_tokens.weight"], embedding)


def test_tensors_of_layers_are_left_out_where_layers_are_stacked_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = qwen_next_layer(tmp_path / "base")
    add_tensors(base, **BEHIND)
    pool = opened(base, 1)
    places = tuple(StackedLayer(i, BASE) for i in (0, 1, 1))
    save_model(pool, LayerStackPlan(places, BASE, None).weights(pool), tmp_path / "out")
    assert "left out" in caplog.text
    assert not set(BEHIND) & set(load_file(tmp_path / "out/model.safetensors"))


class TestSideFiles:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        base = builders.bert_classifier(tmp_path / "base", kind="encoder")
        modules = [{"path": name} for name in ("", "1_Pooling", "2_Dense", "3_Normalize")]
        (base / "modules.json").write_text(json.dumps(modules))
        for module in modules[1:]:
            (base / module["path"]).mkdir()
        (base / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
        (base / "2_Dense/config.json").write_text("{}")
        save_file({"linear.weight": torch.ones(2, 2)}, base / "2_Dense/model.safetensors")
        for name in ("sentence_bert_config.json", "source.spm", "video_preprocessor_config.json"):
            (base / name).write_text(name)
        return base

    def merge(self, base: Path, out: Path, *, trust: bool = False) -> set[str]:
        expert = shutil.copytree(base, base.parent / "expert", dirs_exist_ok=True)
        pool = ExpertPool.open(str(base), {"e": str(expert)}, trust_remote_code=trust)
        save_model(pool, mean(pool), out)
        return {str(path.relative_to(out)) for path in out.rglob("*")}

    def test_all_that_belongs_to_the_model_comes_along(self, base: Path, tmp_path: Path) -> None:
        written = self.merge(base, tmp_path / "out")
        assert {str(path.relative_to(base)) for path in base.rglob("*")} <= written
        for path in base.rglob("*"):
            if path.is_file() and path.name != "model.safetensors":
                assert (
                    tmp_path / "out" / path.relative_to(base)
                ).read_bytes() == path.read_bytes()

    def test_what_is_the_bases_own_stays_behind(self, base: Path, tmp_path: Path) -> None:
        left = {"optimizer.pt", "training_args.bin", "trainer_state.json", "training.json"}
        left |= {"pytorch_model.bin", "adapter_config.json", "adapter_model.bin", "recipe.json"}
        for name in left:
            (base / name).write_text("{}")
        (base / "checkpoint-5").mkdir()
        (base / "checkpoint-5/config.json").write_text("{}")
        (base / "README.md").write_text("of the base")
        written = self.merge(base, tmp_path / "out")
        assert not written & (left | {"checkpoint-5"})
        assert "of the base" not in (tmp_path / "out/README.md").read_text()

    def test_what_may_be_missed_is_named(
        self,
        base: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(side_files, "LARGEST_BYTES", 10**6)
        secret = tmp_path / "secret"
        secret.write_text("not the base's")
        (base / "link.txt").symlink_to(secret)
        (base / "inside.txt").symlink_to(base / "source.spm")
        (base / "data").mkdir()
        for part in "ab":
            (base / f"data/{part}.txt").write_bytes(bytes(6 * 10**5))
        (base / "modeling_own.py").write_text("raise SystemExit")
        (base / "model.Q4.gguf").write_bytes(b"GGUF")
        (base / "onnx").mkdir()
        (base / "onnx/model.onnx").write_bytes(b"")
        left = {"link.txt", "data", "modeling_own.py", "model.Q4.gguf", "onnx"}
        written = self.merge(base, tmp_path / "out")
        assert not written & left
        assert all(name in caplog.text for name in left)
        assert (tmp_path / "out/inside.txt").read_text() == "source.spm"
        trusted = self.merge(base, tmp_path / "trusted", trust=True)
        assert trusted - written == {"modeling_own.py"}

    def test_files_that_the_hub_keeps_by_their_hash_are_no_links_elsewhere(
        self, base: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "models--org--name"
        snapshot = cache / "snapshots/0123"
        (cache / "blobs").mkdir(parents=True)
        shutil.copytree(base, snapshot)
        for i, path in enumerate(sorted(each for each in snapshot.rglob("*") if each.is_file())):
            path.rename(cache / f"blobs/{i}")
            path.symlink_to(cache / f"blobs/{i}")
        written = self.merge(snapshot, tmp_path / "out")
        assert {str(path.relative_to(base)) for path in base.rglob("*")} <= written
        assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
