"""Merges saved as adapters: peft loads them, their error is the best of the rank."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.knots import Knots
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import uniform_plan
from merging.saving.save_adapter import check_adapter, save_adapter
from merging.spaces.full_weights import weighted_start
from merging.weights import CheckpointError, Weights
from tests import builders

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with two adapters and a whole expert beside it."""
    root = tmp_path_factory.mktemp("adapters")
    base = builders.llama(root / "base")
    builders.lora_adapter(root / "code", base, seed=1)
    builders.lora_adapter(root / "prose", base, seed=2, rank=2)
    builders.llama(root / "full", like=base, seed=5)
    return base


def pool_of(base: Path, *names: str) -> ExpertPool:
    return ExpertPool.open(str(base), {name: str(base.parent / name) for name in names})


def merged_of(pool: ExpertPool) -> Weights:
    weights = [0.75, 0.5][: len(pool.expert_names)]
    return weighted_start(pool, weights).weights(pool, dtype=torch.float32)


def loaded(base: Path, adapter: Path) -> dict[str, Tensor]:
    """Base and adapter together, as peft merges them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    state: dict[str, Tensor] = merged.state_dict()
    return state


def assert_close(found: dict[str, Tensor], pool: ExpertPool, merged: Weights) -> None:
    for name in pool.base:
        expected = merged[name] if name in pool.names else pool.base[name].float()
        torch.testing.assert_close(found[name], expected, rtol=0, atol=2e-6)


def test_peft_loads_the_merge_where_the_rank_suffices(llama: Path, tmp_path: Path) -> None:
    pool = pool_of(llama, "code", "prose")
    merged = merged_of(pool)
    saved = save_adapter(pool, merged, tmp_path / "adapter", rank=6)
    assert_close(loaded(llama, tmp_path / "adapter"), pool, merged)
    assert saved.error < 1e-5
    assert saved.whole == ()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == str(llama)
    assert len(config["target_modules"]) == 4
    assert "rank 6" in (tmp_path / "adapter" / "README.md").read_text()


def test_auto_class_finds_base_and_adapter(llama: Path, tmp_path: Path) -> None:
    pool = pool_of(llama, "code")
    merged = merged_of(pool)
    save_adapter(pool, merged, tmp_path / "adapter", rank=4)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert_close(model.merge_and_unload().state_dict(), pool, merged)


def test_it_is_an_expert_again(llama: Path, tmp_path: Path) -> None:
    pool = pool_of(llama, "code", "prose")
    merged = merged_of(pool)
    save_adapter(pool, merged, tmp_path / "adapter", rank=6)
    again = ExpertPool.open(str(llama), {"merged": str(tmp_path / "adapter")})
    assert again.names == pool.names
    own = again.expert_weights("merged")
    for name in again.names:
        torch.testing.assert_close(own[name], merged[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_error_is_the_best_of_its_rank(llama: Path, tmp_path: Path, rank: int) -> None:
    """Eckart and Young: what is left out are the smaller singular values."""
    pool = pool_of(llama, "code", "full")
    knots = uniform_plan(Knots(), Whole(), pool)
    merged = knots.weights(pool, dtype=torch.float32)
    saved = save_adapter(pool, merged, tmp_path / "adapter", rank=rank)
    left_out, everything, worst = 0.0, 0.0, 0.0
    for name in pool.names:
        if pool.base.shape(name) and len(pool.base.shape(name)) == 2:
            squares = torch.linalg.svdvals((merged[name] - pool.base[name]).double()) ** 2
            left_out += float(squares[rank:].sum())
            everything += float(squares.sum())
            worst = max(worst, math.sqrt(float(squares[rank:].sum() / squares.sum())))
    assert saved.error == pytest.approx(math.sqrt(left_out / everything), rel=1e-4)
    assert saved.worst_error == pytest.approx(worst, rel=1e-4)
    assert saved.rank == rank
    state = loaded(llama, tmp_path / "adapter")
    rest = (state[Q_PROJ] - merged[Q_PROJ]).double().norm() ** 2
    squares = torch.linalg.svdvals((merged[Q_PROJ] - pool.base[Q_PROJ]).double()) ** 2
    assert float(rest) == pytest.approx(float(squares[rank:].sum()), rel=1e-3)


def test_layers_without_a_matrix_are_kept_whole(llama: Path, tmp_path: Path) -> None:
    pool = pool_of(llama, "full")
    merged = merged_of(pool)
    saved = save_adapter(pool, merged, tmp_path / "adapter", rank=64)
    assert "model.norm" in saved.whole
    assert len(saved.whole) == 5
    assert "5 layers kept whole" in str(saved)
    assert_close(loaded(llama, tmp_path / "adapter"), pool, merged)
    again = ExpertPool.open(str(llama), {"merged": str(tmp_path / "adapter")})
    assert set(again.names) == set(pool.names)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_layers_that_store_their_weight_transposed(tmp_path: Path, targets: list[str]) -> None:
    base = builders.gpt2(tmp_path / "gpt2")
    for seed, name in enumerate(("code", "prose")):
        builders.lora_adapter(tmp_path / name, base, seed=seed, targets=targets)
    pool = pool_of(base, "code", "prose")
    merged = merged_of(pool)
    save_adapter(pool, merged, tmp_path / "adapter", rank=8)
    assert_close(loaded(base, tmp_path / "adapter"), pool, merged)


def test_bias_that_changed_keeps_its_layer_whole(tmp_path: Path) -> None:
    base = builders.gpt2(tmp_path / "gpt2", tie_word_embeddings=False)
    builders.gpt2(tmp_path / "full", tie_word_embeddings=False, like=base, seed=5)
    pool = pool_of(base, "full")
    merged = merged_of(pool)
    saved = save_adapter(pool, merged, tmp_path / "adapter", rank=32)
    assert "transformer.h.0.attn.c_attn" in saved.whole
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.transformer.h.0.attn.c_attn"
    assert {f"{stem}.weight", f"{stem}.bias"} <= set(stored)
    assert_close(loaded(base, tmp_path / "adapter"), pool, merged)


def test_embeddings_have_factors_of_their_own(llama: Path, tmp_path: Path) -> None:
    base = llama
    adapter = builders.lora_adapter(tmp_path / "one", base, targets=["embed_tokens", "q_proj"])
    pool = ExpertPool.open(str(base), {"one": str(adapter)})
    merged = merged_of(pool)
    save_adapter(pool, merged, tmp_path / "adapter", rank=4)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.model.embed_tokens.lora_embedding_A" in stored
    assert_close(loaded(base, tmp_path / "adapter"), pool, merged)


def test_shared_encoder_of_classifiers(tmp_path: Path) -> None:
    base = builders.bert_classifier(tmp_path / "base", kind="encoder")
    expert = builders.bert_classifier(tmp_path / "expert", like=base, seed=3)
    pool = ExpertPool.open(str(base), {"expert": str(expert)})
    merged = merged_of(pool)
    save_adapter(pool, merged, tmp_path / "adapter", rank=32)
    model = transformers.AutoModel.from_pretrained(base)
    state = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    assert_close(state.state_dict(), pool, merged)


def test_half_precision_base(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base", dtype=torch.bfloat16)
    builders.lora_adapter(tmp_path / "code", base, seed=1)
    pool = pool_of(base, "code")
    merged = merged_of(pool)
    saved = save_adapter(pool, merged, tmp_path / "adapter", rank=4)
    assert saved.error < 1e-4
    assert_close(loaded(base, tmp_path / "adapter"), pool, merged)


class TestRefusals:
    def test_tied_embeddings_that_change(self, tmp_path: Path) -> None:
        base = builders.llama(tmp_path / "base", tie=True)
        builders.llama(tmp_path / "full", tie=True, like=base, seed=5)
        pool = pool_of(base, "full")
        text = r"no adapter can hold model\.embed_tokens\.weight, which is tied to another"
        with pytest.raises(CheckpointError, match=text):
            check_adapter(pool, merged_of(pool))
        with pytest.raises(CheckpointError, match=text):
            save_adapter(pool, merged_of(pool), tmp_path / "adapter", rank=4)
        assert not (tmp_path / "adapter").exists()

    def test_tied_embeddings_that_do_not_change(self, tmp_path: Path) -> None:
        base = builders.llama(tmp_path / "base", tie=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            model.get_parameter("model.layers.1.mlp.up_proj.weight").add_(0.125)
        builders.save(model, tmp_path / "full")
        pool = pool_of(base, "full")
        check_adapter(pool, merged_of(pool))
        merged = merged_of(pool)
        saved = save_adapter(pool, merged, tmp_path / "adapter", rank=1)
        assert (saved.worst, saved.whole) == ("model.layers.1.mlp.up_proj.weight", ())
        assert_close(loaded(base, tmp_path / "adapter"), pool, merged)

    def test_parameters_of_a_module_with_layers_inside(self, tmp_path: Path) -> None:
        base = builders.vit_classifier(tmp_path / "base", encoder=True)
        builders.vit_classifier(tmp_path / "full", like=base, seed=5)
        pool = pool_of(base, "full")
        with pytest.raises(CheckpointError, match=r"cls_token, which belongs to a module with"):
            check_adapter(pool, merged_of(pool))
        with pytest.raises(CheckpointError, match=r"cls_token, which belongs to a module with"):
            save_adapter(pool, merged_of(pool), tmp_path / "adapter", rank=4)

    def test_adapters_can_always_be_held(self, llama: Path) -> None:
        pool = pool_of(llama, "code", "prose")
        check_adapter(pool, merged_of(pool))

    def test_merge_that_is_the_base(self, llama: Path, tmp_path: Path) -> None:
        pool = pool_of(llama, "code")
        same: dict[str, Any] = {name: pool.base[name] for name in pool.names}
        with pytest.raises(CheckpointError, match="changes no matrix of the base"):
            save_adapter(pool, same, tmp_path / "adapter", rank=4)

    def test_other_tensors_than_the_pools(self, llama: Path, tmp_path: Path) -> None:
        pool = pool_of(llama, "code")
        more = {**merged_of(pool), "lm_head.weight": pool.base["lm_head.weight"]}
        text = r"other tensors.*lm_head\.weight.*no adapter"
        with pytest.raises(CheckpointError, match=text):
            check_adapter(pool, more)
        with pytest.raises(CheckpointError, match=text):
            save_adapter(pool, more, tmp_path / "adapter", rank=4)

    def test_directory_that_holds_something(self, llama: Path, tmp_path: Path) -> None:
        pool = pool_of(llama, "code")
        (tmp_path / "note").write_text("mine")
        with pytest.raises(CheckpointError, match=r"exists: choose another directory"):
            save_adapter(pool, merged_of(pool), tmp_path, rank=4)
        assert (tmp_path / "note").read_text() == "mine"

    def test_rank_below_one(self, llama: Path, tmp_path: Path) -> None:
        pool = pool_of(llama, "code")
        with pytest.raises(ValueError, match="rank of the adapter must be at least 1, got 0"):
            save_adapter(pool, merged_of(pool), tmp_path / "adapter", rank=0)


def test_nothing_is_left_of_an_adapter_that_cannot_be_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("merging.saving.save_adapter.save_file", full)
    pool = pool_of(llama, "code")
    with pytest.raises(CheckpointError, match=r"cannot write .*adapter \(No space left"):
        save_adapter(pool, merged_of(pool), tmp_path / "adapter", rank=4)
    assert list(tmp_path.iterdir()) == []


def test_same_merge_same_bytes(llama: Path, tmp_path: Path) -> None:
    pool = pool_of(llama, "code", "prose")
    plan = uniform_plan(TaskArithmetic(), Whole(), pool)
    for name in ("one", "two"):
        save_adapter(pool, plan.weights(pool, dtype=torch.float32), tmp_path / name, rank=3)
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
