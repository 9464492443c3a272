import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merging.checkpoints import naming
from merging.checkpoints.checkpoint import Checkpoint
from merging.weights import CheckpointError
from tests import builders

CPU = torch.device("cpu")

ARCHITECTURES: dict[str, Callable[..., Path]] = {
    "llama": builders.llama,
    "qwen2": builders.qwen2,
    "gpt_neox": builders.gpt_neox,
    "gpt2": builders.gpt2,
    "bert": builders.bert_classifier,
    "vit": builders.vit_classifier,
}


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the single weight file of a checkpoint."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shards", [False, True])
def test_every_tensor_equals_the_modules_under_the_modules_name(
    tmp_path: Path, architecture: str, shards: bool
) -> None:
    path = ARCHITECTURES[architecture](tmp_path / "base", shards=shards)
    checkpoint = Checkpoint.open(str(path))
    state = checkpoint.module(dtype=torch.float32, device=CPU).state_dict()
    assert checkpoint.file_names is not None, "renamed, not converted: must stay lazy"
    assert set(checkpoint) | set(checkpoint.aliases) == set(state)
    for name in checkpoint:
        assert torch.equal(checkpoint[name], state[name])
        assert checkpoint.shape(name) == state[name].shape
        assert checkpoint.dtype(name) == state[name].dtype


def test_a_file_with_the_old_names_of_vit_opens_under_the_new(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(builders.vit_classifier(tmp_path / "vit")))
    assert checkpoint.file_names is not None
    assert any(name != key for name, key in checkpoint.file_names.items())


def test_names_come_from_the_class_where_the_renaming_rules_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = builders.gpt_neox(tmp_path / "neox", dtype=torch.bfloat16)
    lazy = Checkpoint.open(str(path))
    monkeypatch.setattr(naming, "match", lambda module, names: None)
    loaded = Checkpoint.open(str(path))
    assert list(loaded) == list(lazy)
    for name in lazy:
        assert loaded.dtype(name) == torch.bfloat16
        assert torch.equal(loaded[name], lazy[name])


def test_fused_experts_are_loaded_through_the_class(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path / "mixtral")
    checkpoint = Checkpoint.open(str(tmp_path / "mixtral"))
    assert checkpoint.file_names is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint[name], tensor)


@pytest.mark.parametrize("shape", [(65, 32), (32, 8)])
def test_tensors_that_cannot_be_fused_are_a_sentence(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(
        vocab_size=64, intermediate_size=32, num_hidden_layers=1, num_local_experts=2, **sizes
    )
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    name = "lm_head.weight" if shape[0] == 65 else "block_sparse_moe.experts.0.w1.weight"
    name = next(key for key in load_file(tmp_path / "model.safetensors") if key.endswith(name))
    rewrite(tmp_path, lambda t: t.update({name: torch.zeros(shape)}))
    with pytest.raises(CheckpointError, match="cannot make a MixtralForCausalLM of these"):
        Checkpoint.open(str(tmp_path))


def test_tied_tensors_appear_once(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(builders.llama(tmp_path / "tied", tie=True)))
    assert "lm_head.weight" not in checkpoint
    assert checkpoint.aliases == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_file_may_carry_the_alias_with_equal_values(tmp_path: Path) -> None:
    path = builders.llama(tmp_path / "tied", tie=True)
    rewrite(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in Checkpoint.open(str(path))


def test_a_file_may_carry_only_the_alias(tmp_path: Path) -> None:
    path = builders.llama(tmp_path / "tied", tie=True)
    rewrite(path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    checkpoint = Checkpoint.open(str(path))
    assert checkpoint["model.embed_tokens.weight"].shape == (builders.VOCAB, 32)


def test_what_a_file_holds_apart_is_not_tied(tmp_path: Path) -> None:
    path = builders.llama(tmp_path / "tied", tie=True)
    rewrite(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    checkpoint = Checkpoint.open(str(path))
    state = checkpoint.module(dtype=torch.float32, device=CPU).state_dict()
    assert checkpoint.aliases == {}
    assert list(checkpoint) == list(state)
    assert all(torch.equal(checkpoint[name], state[name]) for name in state)
    assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])


def test_legacy_buffers_in_the_file_are_ignored(tmp_path: Path) -> None:
    path = builders.llama(tmp_path / "old")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(path, lambda t: t.update({name: torch.ones(4)}))
    assert name not in Checkpoint.open(str(path))


def test_shapes_and_dtypes_are_known_without_reading(tmp_path: Path) -> None:
    path = builders.llama(tmp_path / "mixed", dtype=torch.bfloat16)
    rewrite(path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()}))
    checkpoint = Checkpoint.open(str(path))
    assert checkpoint.dtype("model.norm.weight") == torch.float32
    assert checkpoint.dtype("lm_head.weight") == torch.bfloat16
    assert checkpoint.shape("lm_head.weight") == (builders.VOCAB, 32)


def test_module_has_the_asked_dtype_and_no_gradients_and_leaves_randomness_alone(
    tmp_path: Path,
) -> None:
    path = builders.bert_classifier(tmp_path / "masked", kind="masked")
    before = torch.random.get_rng_state()
    checkpoint = Checkpoint.open(str(path), encoder=True)
    module = checkpoint.module(dtype=torch.float16, device=CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in module.parameters())
    assert set(module.state_dict()) == set(checkpoint), "no pooler made of random numbers"


@pytest.mark.parametrize("pickled", [False, True])
def test_what_is_written_into_a_module_does_not_change_the_checkpoint(
    tmp_path: Path, pickled: bool
) -> None:
    path = builders.llama(tmp_path / "base")
    tensors = load_file(path / "model.safetensors")
    if pickled:
        torch.save(tensors, path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    checkpoint = Checkpoint.open(str(path))
    for tensor in checkpoint.module(dtype=torch.float32, device=CPU).state_dict().values():
        tensor.zero_()
    assert all(torch.equal(checkpoint[name], tensors[name]) for name in checkpoint)
    again = checkpoint.module(dtype=torch.float32, device=CPU).state_dict()
    assert all(torch.equal(again[name], tensors[name]) for name in checkpoint)


def test_encoder_of_a_classifier_and_of_itself_have_equal_names(tmp_path: Path) -> None:
    bare = builders.bert_classifier(tmp_path / "bare", kind="encoder")
    headed = builders.bert_classifier(tmp_path / "headed", like=bare)
    names = list(Checkpoint.open(str(bare), encoder=True))
    assert names == list(Checkpoint.open(str(headed), encoder=True))
    assert not any(name.startswith("bert.") for name in names)


def test_tokenizer_and_image_processor_where_the_checkpoint_has_them(tmp_path: Path) -> None:
    text = Checkpoint.open(str(builders.llama(tmp_path / "text")))
    image = Checkpoint.open(str(builders.vit_classifier(tmp_path / "image")))
    tokenizer = text.tokenizer()
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer("héllo")["input_ids"]) == "héllo"
    assert text.image_processor() is None
    assert image.tokenizer() is None
    assert image.image_processor() is not None


def test_identity_follows_the_bytes(tmp_path: Path) -> None:
    one = builders.llama(tmp_path / "one")
    shutil.copytree(one, tmp_path / "copy")
    builders.llama(tmp_path / "other", seed=1)
    identity = {name: Checkpoint.open(str(tmp_path / name)).sha256 for name in ["one", "copy"]}
    assert identity["one"] == identity["copy"]
    assert identity["one"] != Checkpoint.open(str(tmp_path / "other")).sha256


class TestPickles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = builders.llama(tmp_path / "base")
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").rename(tmp_path / "kept.safetensors")
        return path

    def test_tensors_alone_are_read(self, path: Path) -> None:
        checkpoint = Checkpoint.open(str(path))
        with safe_open(path.parent / "kept.safetensors", "pt") as kept:
            assert torch.equal(checkpoint["lm_head.weight"], kept.get_tensor("lm_head.weight"))
        state = checkpoint.module(dtype=torch.float32, device=CPU).state_dict()
        assert torch.equal(state["lm_head.weight"], checkpoint["lm_head.weight"])

    def test_code_is_refused_and_does_not_run(self, path: Path, tmp_path: Path) -> None:
        class Runs:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "ran",)

        torch.save({"lm_head.weight": Runs()}, path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"weights_only=True.*convert.*safetensors"):
            Checkpoint.open(str(path))
        assert not (tmp_path / "ran").exists()

    def test_something_else_than_tensors_is_refused(self, path: Path) -> None:
        torch.save({"epoch": 3}, path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="no flat mapping of names to tensors"):
            Checkpoint.open(str(path))

    def test_missing_shard_is_named(self, path: Path) -> None:
        (path / "pytorch_model.bin").unlink()
        index = {"weight_map": {"lm_head.weight": "pytorch_model-00001-of-00002.bin"}}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin is missing"):
            Checkpoint.open(str(path))


class TestRefusals:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return builders.llama(tmp_path / "base")

    def test_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(
            CheckpointError, match=r"nowhere does not exist; expected a checkpoint"
        ):
            Checkpoint.open(str(tmp_path / "nowhere"))

    def test_unknown_hub_id_offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(
            CheckpointError, match=r"'nobody/nothing' is no directory here.*HF_HUB_OFFLINE is set"
        ):
            Checkpoint.open("nobody/nothing")

    def test_file_instead_of_directory(self, path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"neither \.safetensors nor \.gguf; name"):
            Checkpoint.open(str(path / "config.json"))

    def test_empty_directory(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(CheckpointError, match=r"empty is an empty directory"):
            Checkpoint.open(str(tmp_path / "empty"))

    def test_no_configuration(self, path: Path) -> None:
        (path / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            Checkpoint.open(str(path))

    def test_broken_configuration(self, path: Path) -> None:
        (path / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"config\.json is no valid JSON object"):
            Checkpoint.open(str(path))

    def test_unknown_architecture(self, path: Path) -> None:
        edit(path / "config.json", model_type="lalama")
        with pytest.raises(CheckpointError, match="cannot read model_type 'lalama'"):
            Checkpoint.open(str(path))

    def test_code_of_the_repository(self, path: Path) -> None:
        edit(path / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
        with pytest.raises(CheckpointError, match=r"auto_map.*set trust_remote_code to true"):
            Checkpoint.open(str(path))

    def test_quantised(self, path: Path) -> None:
        edit(path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
        with pytest.raises(CheckpointError, match=r"is quantised.*full precision"):
            Checkpoint.open(str(path))

    def test_integers_where_the_model_has_floats(self, path: Path) -> None:
        rewrite(path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)}))
        with pytest.raises(CheckpointError, match=r"lm_head\.weight is stored as torch\.int8"):
            Checkpoint.open(str(path))

    def test_no_weights(self, path: Path) -> None:
        (path / "model.safetensors").unlink()
        with pytest.raises(
            CheckpointError, match=r"holds no weights; expected model\.safetensors"
        ):
            Checkpoint.open(str(path))

    def test_weights_of_another_name(self, path: Path) -> None:
        (path / "model.safetensors").rename(path / "mine.safetensors")
        with pytest.raises(CheckpointError, match=r"mine\.safetensors .*rename it to"):
            Checkpoint.open(str(path))

    @pytest.mark.parametrize("kept", [0, 5, 100, -1])
    def test_truncated(self, path: Path, kept: int) -> None:
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors is truncated.*copy it again"
        ):
            Checkpoint.open(str(path))

    def test_corrupt_header(self, path: Path) -> None:
        file = path / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[8:12] = b"\xff\xff\xff\xff"
        file.write_bytes(bytes(content))
        with pytest.raises(CheckpointError, match="has a corrupt header"):
            Checkpoint.open(str(path))

    def test_overlapping_tensors(self, path: Path) -> None:
        header = {
            name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")
        }
        raw = json.dumps(header).encode()
        content = len(raw).to_bytes(8, "little") + raw + bytes(4)
        (path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt"):
            Checkpoint.open(str(path))

    def test_git_lfs_pointer(self, path: Path) -> None:
        text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        (path / "model.safetensors").write_text(text)
        with pytest.raises(CheckpointError, match="run git lfs pull"):
            Checkpoint.open(str(path))

    def test_missing_shard(self, tmp_path: Path) -> None:
        path = builders.llama(tmp_path / "sharded", shards=True)
        next(path.glob("model-00002*")).unlink()
        with pytest.raises(CheckpointError, match=r"model-00002.* is missing, but .*index\.json"):
            Checkpoint.open(str(path))

    def test_shard_without_its_tensor(self, tmp_path: Path) -> None:
        path = builders.llama(tmp_path / "sharded", shards=True)
        index = path / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"]["made.up"] = next(path.glob("model-00001*")).name
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"places tensor made\.up in model-00001"):
            Checkpoint.open(str(path))

    def test_broken_index(self, tmp_path: Path) -> None:
        path = builders.llama(tmp_path / "sharded", shards=True)
        (path / "model.safetensors.index.json").write_text("[]")
        with pytest.raises(CheckpointError, match=r"index\.json is corrupt: no weight_map"):
            Checkpoint.open(str(path))

    def test_missing_tensors(self, path: Path) -> None:
        rewrite(path, lambda t: [t.pop(name) for name in list(t) if "mlp" in name])
        with pytest.raises(
            CheckpointError,
            match=r"lacks 6 tensors that LlamaForCausalLM needs: .*mlp.*, .*, .* and 3 more",
        ):
            Checkpoint.open(str(path))

    def test_unknown_tensors(self, path: Path) -> None:
        rewrite(path, lambda t: t.update({"extra.weight": torch.zeros(2)}))
        with pytest.raises(CheckpointError, match=r"holds 1 tensors that .* extra\.weight"):
            Checkpoint.open(str(path))

    def test_shape_against_configuration(self, path: Path) -> None:
        edit(path / "config.json", vocab_size=100)
        with pytest.raises(CheckpointError, match=r"has shape \(259, 32\).*asks for \(100, 32\)"):
            Checkpoint.open(str(path))

    def test_adapter_in_place_of_a_checkpoint(self, path: Path) -> None:
        (path / "config.json").rename(path / "adapter_config.json")
        with pytest.raises(CheckpointError, match=r"is a PEFT adapter.*expert of its base"):
            Checkpoint.open(str(path))
