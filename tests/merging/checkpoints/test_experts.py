import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.compatibility import check_poolers
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.weight_files import WeightFiles
from merging.weights import CheckpointError
from tests import builders
from tests.merging.checkpoints.test_checkpoint import edit, rewrite

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.llama(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def pool(llama: Path) -> ExpertPool:
    return ExpertPool.open(str(llama), builders.experts_of(llama, 3))


def state_of(path: str | Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = transformers.AutoModelForCausalLM.from_pretrained(
        path
    ).state_dict()
    return state


class TestLanguageModels:
    @pytest.mark.parametrize("builder", [builders.llama, builders.qwen2, builders.gpt_neox])
    def test_deltas_are_expert_minus_base(
        self, tmp_path: Path, builder: Callable[..., Path]
    ) -> None:
        base = builder(tmp_path / "base", shards=True)
        experts = builders.experts_of(base, 2)
        pool = ExpertPool.open(str(base), experts)
        assert pool.expert_names == ("code", "prose")
        states = [state_of(experts[name]) for name in pool.expert_names]
        own = state_of(base)
        assert set(pool.names) == set(own) - set(pool.base.aliases)
        for name in pool.names:
            expected = torch.stack([state[name] - own[name] for state in states])
            assert torch.equal(pool.deltas(name), expected)
            assert torch.equal(pool.expert_weights("prose")[name], states[1][name])

    def test_names_fit_the_module(self, pool: ExpertPool) -> None:
        state = pool.base.module(dtype=torch.float32, device=CPU).state_dict()
        assert set(pool.names) <= set(state)
        for name, tensor in pool.expert_weights("code").items():
            assert tensor.shape == state[name].shape

    def test_deltas_of_mixed_dtypes_are_float32_and_exact(
        self, tmp_path: Path, llama: Path
    ) -> None:
        half = builders.llama(tmp_path / "half", like=llama, seed=7, dtype=torch.bfloat16)
        pool = ExpertPool.open(str(llama), {"half": str(half)})
        for name in pool.names:
            deltas = pool.deltas(name)
            assert deltas.dtype == torch.float32
            half_tensor = pool.expert_weights("half")[name]
            assert half_tensor.dtype == torch.bfloat16
            assert torch.equal(deltas[0], half_tensor.float() - pool.base_tensor(name))

    def test_integer_tensors_keep_the_bases_value(self, tmp_path: Path) -> None:
        base = builders.bert_classifier(tmp_path / "base", kind="encoder")
        pool = ExpertPool.open(str(base), {"same": str(base)})
        assert all(pool.base.dtype(name).is_floating_point for name in pool.names)
        assert set(pool.names) <= set(pool.base)

    def test_resident_pool_is_the_same_pool(self, llama: Path, tmp_path: Path) -> None:
        experts = builders.experts_of(llama, 2, names=("first", "second")) | {
            "lora": str(builders.lora_adapter(tmp_path / "lora", llama))
        }
        pool = ExpertPool.open(str(llama), experts)
        held = pool.resident(CPU)
        assert (held.names, held.identities, held.sources) == (
            pool.names,
            pool.identities,
            pool.sources,
        )
        for name in pool.names:
            assert torch.equal(held.deltas(name), pool.deltas(name))
            assert torch.equal(held.base_tensor(name), pool.base_tensor(name))
            assert torch.equal(
                held.expert_weights("lora")[name], pool.expert_weights("lora")[name]
            )

    def test_resident_pool_outlives_its_files(self, tmp_path: Path) -> None:
        base = builders.llama(tmp_path / "base")
        experts = builders.experts_of(base, 1)
        held = ExpertPool.open(str(base), experts).resident(CPU)
        before = held.deltas("lm_head.weight").clone()
        (base / "model.safetensors").write_bytes(b"")
        (Path(experts["code"]) / "model.safetensors").write_bytes(b"")
        assert torch.equal(held.deltas("lm_head.weight"), before)

    def test_cached_deltas_are_the_same_and_shared_by_selections(self, pool: ExpertPool) -> None:
        cached = pool.resident(CPU, cache_deltas=True)
        chosen = cached.select(["maths", "code"])
        for name in pool.names:
            assert torch.equal(cached.deltas(name), pool.deltas(name))
            assert cached.deltas(name) is cached.deltas(name)
            assert torch.equal(chosen.deltas(name), pool.deltas(name)[[2, 0]])
            assert torch.equal(chosen.select(["code"]).deltas(name), pool.deltas(name)[:1])

    @settings(
        max_examples=10,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(order=st.permutations(["code", "prose", "maths"]), n=st.integers(1, 3))
    def test_select_keeps_names_and_follows_the_order(
        self, pool: ExpertPool, order: list[str], n: int
    ) -> None:
        chosen = pool.select(order[:n])
        assert chosen.expert_names == tuple(order[:n])
        assert chosen.names == pool.names
        rows = [pool.expert_names.index(name) for name in order[:n]]
        assert chosen.identities == tuple(pool.identities[row] for row in rows)
        name = pool.names[-1]
        assert torch.equal(chosen.deltas(name), pool.deltas(name)[rows])

    @pytest.mark.parametrize("kind", ["llama", "bert"])
    def test_opening_reads_no_weights(
        self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        build = builders.llama if kind == "llama" else builders.bert_classifier
        base = build(tmp_path / "base", shards=True)
        expert = build(tmp_path / "expert", like=base, shards=True)
        monkeypatch.setattr(WeightFiles, "__getitem__", lambda files, name: pytest.fail(name))
        ExpertPool.open(str(base), {"a": str(expert)})

    def test_no_heads(self, pool: ExpertPool) -> None:
        assert pool.heads == ()
        assert pool.classifiers(dtype=torch.float32, device=CPU) == {}

    def test_finite_pool_passes(self, pool: ExpertPool) -> None:
        pool.check_finite()

    def test_base_tied_expert_that_carries_both_copies(self, tmp_path: Path) -> None:
        base = builders.llama(tmp_path / "base", tie=True)
        expert = builders.llama(tmp_path / "expert", like=base, tie=True)
        edit(expert / "config.json", tie_word_embeddings=False)
        embedding = "model.embed_tokens.weight"
        rewrite(expert, lambda t: t.update({"lm_head.weight": t[embedding].clone()}))
        pool = ExpertPool.open(str(base), {"equal": str(expert)})
        assert "lm_head.weight" not in pool.names
        rewrite(expert, lambda t: t["lm_head.weight"].add_(1))
        with pytest.raises(
            CheckpointError, match=r"expert 'equal' .*unties lm_head\.weight from model\.embed"
        ):
            ExpertPool.open(str(base), {"equal": str(expert)})

    def test_other_meaning_of_the_same_shapes_warns(
        self, llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        expert = builders.llama(tmp_path / "expert", like=llama)
        edit(expert / "config.json", rms_norm_eps=0.5)
        with caplog.at_level(logging.WARNING):
            ExpertPool.open(str(llama), {"a": str(expert)})
        assert "rms_norm_eps=0.5, the merged model keeps the base's" in caplog.text


class TestClassifiers:
    def bert(self, path: Path, kind: str) -> ExpertPool:
        base = builders.bert_classifier(path / "base", kind=kind)
        experts = {
            name: str(builders.bert_classifier(path / name, num_labels=n, like=base, seed=n))
            for name, n in [("topic", 4), ("mood", 2)]
        }
        return ExpertPool.open(str(base), experts)

    @pytest.mark.parametrize("kind", ["encoder", "masked", "classifier"])
    def test_bert_bases_of_every_kind(self, tmp_path: Path, kind: str) -> None:
        pool = self.bert(tmp_path, kind)
        assert pool.heads == ("topic", "mood")
        assert not any("classifier" in name or "cls." in name for name in pool.names)
        expert = load_file(Path(pool.sources["mood"]) / "model.safetensors")
        for i, name in enumerate(pool.names):
            expected = expert[f"bert.{name}"] - pool.base_tensor(name)
            assert torch.equal(pool.deltas(name)[1], expected), i
        assert any(name.startswith("pooler.") for name in pool.names) == (kind != "masked")

    @pytest.mark.parametrize("kind", ["encoder", "masked"])
    def test_an_experts_weights_in_the_shared_encoder_give_its_own_logits(
        self, tmp_path: Path, kind: str
    ) -> None:
        pool = self.bert(tmp_path, kind)
        models = pool.classifiers(dtype=torch.float32, device=CPU)
        ids = torch.tensor([[1, 50, 60, 70, 2]])
        for name, labels in [("topic", 4), ("mood", 2)]:
            write(models["topic"].base_model, pool.expert_weights(name))
            alone = transformers.AutoModelForSequenceClassification.from_pretrained(
                pool.sources[name]
            ).eval()
            logits = models[name](input_ids=ids).logits
            assert logits.shape == (1, labels)
            assert torch.equal(logits, alone(input_ids=ids).logits)

    def test_all_share_one_encoder(self, tmp_path: Path) -> None:
        models = self.bert(tmp_path, "encoder").classifiers(dtype=torch.float32, device=CPU)
        assert models["topic"].base_model is models["mood"].base_model

    def test_without_a_pooler_in_the_base_only_the_pooler_is_the_experts_own(
        self, tmp_path: Path
    ) -> None:
        models = self.bert(tmp_path, "masked").classifiers(dtype=torch.float32, device=CPU)
        topic: Any = models["topic"].base_model
        mood: Any = models["mood"].base_model
        assert topic.encoder is mood.encoder
        assert topic.embeddings is mood.embeddings
        assert topic.pooler is not mood.pooler

    @pytest.mark.parametrize("encoder", [True, False])
    def test_vit(self, tmp_path: Path, encoder: bool) -> None:
        base = builders.vit_classifier(tmp_path / "base", encoder=encoder, num_labels=7)
        experts = {
            name: builders.vit_classifier(tmp_path / name, num_labels=n, like=base, seed=n)
            for name, n in [("digits", 10), ("signs", 3)]
        }
        pool = ExpertPool.open(str(base), {name: str(path) for name, path in experts.items()})
        models = pool.classifiers(dtype=torch.float32, device=CPU)
        assert models["digits"].base_model is models["signs"].base_model
        write(models["digits"].base_model, pool.expert_weights("signs"))
        pixels = torch.randn(2, 3, 8, 8)
        alone = transformers.AutoModelForImageClassification.from_pretrained(experts["signs"])
        assert torch.equal(
            models["signs"](pixel_values=pixels).logits,
            alone.eval()(pixel_values=pixels).logits,
        )
        assert [name for name in pool.base if name not in pool.names] == (
            ["pooler.dense.weight", "pooler.dense.bias"] if encoder else []
        )

    def test_mixed_kinds_are_refused(self, tmp_path: Path) -> None:
        base = builders.bert_classifier(tmp_path / "base", kind="encoder")
        headed = builders.bert_classifier(tmp_path / "headed", like=base)
        with pytest.raises(
            CheckpointError, match="'a' is a classifier and expert 'b' is none; merge one kind"
        ):
            ExpertPool.open(str(base), {"a": str(headed), "b": str(base)})

    def test_a_pooler_that_only_some_experts_have_is_refused(self, tmp_path: Path) -> None:
        base = Checkpoint.open(
            str(builders.bert_classifier(tmp_path / "base", kind="encoder")), encoder=True
        )
        without = {name: base[name] for name in base if not name.startswith("pooler.")}
        with pytest.raises(CheckpointError, match="'b' has no pooler, other experts and the base"):
            check_poolers(base, {"a": base, "b": without})


def write(module: Any, weights: Any) -> None:
    state = module.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            state[name].copy_(tensor)


class TestRefusals:
    def refuse(self, base: Path, expert: Path, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            ExpertPool.open(str(base), {"odd": str(expert)})

    def test_no_experts(self, llama: Path) -> None:
        with pytest.raises(CheckpointError, match="the pool has no experts; name at least one"):
            ExpertPool.open(str(llama), {})

    @pytest.mark.parametrize("name", ["", "a/b", ".hidden", "a\\b"])
    def test_names_that_are_no_file_names(self, llama: Path, name: str) -> None:
        with pytest.raises(CheckpointError, match="cannot be used in paths and reports"):
            ExpertPool.open(str(llama), {name: str(llama)})

    def test_missing_expert(self, llama: Path, tmp_path: Path) -> None:
        self.refuse(llama, tmp_path / "gone", "gone does not exist")

    def test_missing_base(self, llama: Path, tmp_path: Path) -> None:
        self.refuse(tmp_path / "gone", llama, "gone does not exist")

    def test_empty_expert(self, llama: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.refuse(llama, tmp_path / "empty", "empty is an empty directory")

    def test_architecture(self, llama: Path, tmp_path: Path) -> None:
        other = builders.qwen2(tmp_path / "qwen2")
        self.refuse(llama, other, r"expert 'odd' .* is of architecture 'qwen2'.*of 'llama'")

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            ({"num_hidden_layers": 3}, r"has 3 layers \(num_hidden_layers\), the base .* has 2"),
            ({"vocab_size": 300}, r"has 300 vocabulary entries \(vocab_size\), .* has 259"),
            ({"hidden_size": 64}, r"has 64 hidden units \(hidden_size\), the base .* has 32"),
            ({"intermediate_size": 48}, r"has 48 units in the MLP .* has 64"),
            ({"num_key_value_heads": 4}, r"has 4 key-value heads"),
        ],
    )
    def test_sizes(self, llama: Path, tmp_path: Path, size: dict[str, int], message: str) -> None:
        self.refuse(llama, builders.llama(tmp_path / "other", **size), message)

    def test_shape_that_no_size_names(self, llama: Path, tmp_path: Path) -> None:
        other = builders.llama(tmp_path / "other", head_dim=16)
        self.refuse(llama, other, r"q_proj\.weight has shape \(64, 32\), .* has \(32, 32\)")

    def test_tensors_that_the_base_lacks(self, llama: Path, tmp_path: Path) -> None:
        other = builders.llama(tmp_path / "other", attention_bias=True)
        self.refuse(llama, other, r"has 8 tensors that the base .* lacks: .*q_proj\.bias")

    def test_tensors_that_the_expert_lacks(self, llama: Path, tmp_path: Path) -> None:
        other = builders.llama(tmp_path / "other", attention_bias=True)
        self.refuse(other, llama, r"lacks 8 tensors of the base .*q_proj\.bias")

    def test_truncated_expert(self, llama: Path, tmp_path: Path) -> None:
        other = builders.llama(tmp_path / "other")
        file = other / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        self.refuse(llama, other, r"model\.safetensors is truncated")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("who", ["base", "expert 'odd'"])
    def test_values_that_are_no_numbers(
        self, llama: Path, tmp_path: Path, value: float, who: str
    ) -> None:
        broken = builders.llama(tmp_path / "broken")
        file = broken / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"][:2] = value
        save_file(tensors, file, metadata={"format": "pt"})
        base, expert = (broken, llama) if who == "base" else (llama, broken)
        pool = ExpertPool.open(str(base), {"odd": str(expert)})
        with pytest.raises(
            CheckpointError, match=rf"{who}.*: tensor model\.norm\.weight holds 2 values"
        ):
            pool.check_finite()

    def test_a_file_that_was_found_finite_is_read_again_when_it_changed(
        self, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
        copy = builders.llama(tmp_path / "copy")
        file, read = copy / "model.safetensors", []
        os.utime(file, (1e9, 1e9))
        whole = Checkpoint.__getitem__
        monkeypatch.setattr(
            Checkpoint, "__getitem__", lambda self, name: read.append(name) or whole(self, name)
        )
        for expected in (True, False):
            ExpertPool.open(str(copy), {"same": str(copy)}).check_finite()
            assert bool(read) is expected
            read.clear()
        content = bytearray(file.read_bytes())
        content[-4:] = b"\x00\x00\xc0\x7f"  # NaN, in a file of the same size and date
        file.write_bytes(content)
        os.utime(file, (1e9, 1e9))
        with pytest.raises(CheckpointError, match="holds 1 values that are NaN"):
            ExpertPool.open(str(copy), {"same": str(copy)}).check_finite()

    def test_selections(self, pool: ExpertPool) -> None:
        with pytest.raises(CheckpointError, match="no experts are selected"):
            pool.select([])
        with pytest.raises(CheckpointError, match="no expert is named 'cod'; the pool has code"):
            pool.select(["cod"])
        with pytest.raises(CheckpointError, match="'code' is named 2 times"):
            pool.select(["code", "code"])
        with pytest.raises(CheckpointError, match="no expert is named 'x'"):
            pool.expert_weights("x")
