"""Writing candidates in place, and what the resident knows of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from evaluators.engine.resident import Resident
from merging.checkpoints.experts import ExpertPool
from tests import builders
from tests.evaluators.conftest import language_resident


def test_write_keeps_every_tensor_in_its_place(llama: Resident) -> None:
    places = {name: p.data_ptr() for name, p in llama.module.named_parameters()}
    target = {n: torch.full_like(p, 0.5) for n, p in llama.module.named_parameters()}
    llama.write(target)
    for name, parameter in llama.module.named_parameters():
        assert parameter.data_ptr() == places[name]
        assert torch.equal(parameter, target[name])


def test_write_reads_lazy_weights_one_at_a_time_without_gradients(llama: Resident) -> None:
    read: list[str] = []

    class Lazy(Mapping[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            assert not torch.is_grad_enabled()
            read.append(name)
            return torch.zeros(llama.module.get_parameter(name).shape, dtype=torch.float64)

        def __iter__(self) -> Iterator[str]:
            return iter(["lm_head.weight", "model.norm.weight"])

        def __len__(self) -> int:
            return 2

    llama.write(Lazy())
    assert read == ["lm_head.weight", "model.norm.weight"]
    assert not llama.module.lm_head.weight.any()


def test_write_casts_to_the_residents_dtype(checkpoints: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "llama", dtype=torch.bfloat16)
    resident = Resident(model, tokenizer=None)
    resident.write({"model.norm.weight": torch.full((32,), 1.00001)})
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.norm.weight, torch.ones(32, dtype=torch.bfloat16))


def test_tied_weights_follow_either_name(tmp_path: Path) -> None:
    resident = language_resident(builders.llama(tmp_path / "tied", tie=True))
    resident.write({"model.embed_tokens.weight": torch.ones(builders.VOCAB, 32)})
    assert bool((resident.module.lm_head.weight == 1).all())


def test_parameters_begin_at_a_cache_line_and_keep_sharing_memory() -> None:
    memory = torch.arange(41.0)
    model = torch.nn.Module()
    model.config = LlamaConfig()
    for name in ("first", "second"):  # two parameters of one memory, 4 bytes into a line
        model.register_parameter(name, torch.nn.Parameter(memory[1:33]))
    resident = Resident(model, tokenizer=None)
    first, second = resident.tensor("first"), resident.tensor("second")
    assert first.data_ptr() % 64 == 0
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(first, torch.arange(1.0, 33.0))


def test_parameters_that_share_a_part_of_their_memory_stay() -> None:
    memory = torch.arange(100.0)
    model = torch.nn.Module()
    model.config = LlamaConfig()
    views = {
        "all": memory[1:65],
        "part": memory[17:33],
        "turned": memory[1:65].view(8, 8).T,
        "lone": torch.arange(20.0)[1:11],
    }
    for name, view in views.items():
        model.register_parameter(name, torch.nn.Parameter(view))
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    resident = Resident(model, tokenizer=None)
    resident.tensor("all").fill_(-1)
    assert (resident.tensor("part") == -1).all()
    assert (resident.tensor("turned") == -1).all()
    assert {n for n, place in before.items() if resident.tensor(n).data_ptr() != place} == {"lone"}


def test_unknown_name_is_refused_before_anything_is_written(llama: Resident) -> None:
    before = llama.module.lm_head.weight.clone()
    with pytest.raises(ValueError, match=r"'model\.norm\.weigth'; the nearest is 'model\.norm\.w"):
        llama.write({"lm_head.weight": torch.zeros_like(before), "model.norm.weigth": before})
    assert torch.equal(llama.module.lm_head.weight, before)


def test_wrong_shape_is_refused_by_name(llama: Resident) -> None:
    with pytest.raises(ValueError, match=r"'model\.norm\.weight' has shape \(1,\).*\(32,\)"):
        llama.write({"model.norm.weight": torch.zeros(1)})


def test_evaluation_mode_without_gradients(llama: Resident) -> None:
    assert not llama.module.training
    assert not any(p.requires_grad for p in llama.module.parameters())


@pytest.mark.parametrize(("name", "length"), [("llama", 512), ("gpt2", 512), ("short", 48)])
def test_length_from_the_config(checkpoints: Path, name: str, length: int) -> None:
    info = language_resident(checkpoints / name).info
    assert info.max_length == length
    assert info.causal


def test_length_can_be_set(checkpoints: Path) -> None:
    assert language_resident(checkpoints / "llama", max_length=100).info.max_length == 100
    with pytest.raises(ValueError, match="max_length must be at least 2 tokens, got 1"):
        language_resident(checkpoints / "llama", max_length=1)


def test_from_pool_of_language_models(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    pool = ExpertPool.open(str(base), builders.experts_of(base, 2))
    resident = Resident.from_pool(pool, device="cpu", dtype=torch.float32)
    assert resident.info.heads == ()
    for expert in pool.expert_names:
        resident.write(pool.expert_weights(expert))
        model = AutoModelForCausalLM.from_pretrained(pool.sources[expert])
        for name, tensor in model.state_dict().items():
            assert torch.equal(resident.module.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", ["encoder", "masked"])
def test_from_pool_of_classifiers_shares_one_encoder(tmp_path: Path, kind: str) -> None:
    base = builders.bert_classifier(tmp_path / "base", kind=kind)
    experts = (
        {
            name: str(builders.bert_classifier(tmp_path / name, like=base, seed=i, num_labels=i))
            for i, name in enumerate(["two", "three"], start=2)
        }
        if kind == "encoder"
        else {
            name: str(builders.bert_classifier(tmp_path / name, seed=i, num_labels=i))
            for i, name in enumerate(["two", "three"], start=2)
        }
    )
    pool = ExpertPool.open(str(base), experts)
    resident = Resident.from_pool(pool, device="cpu", dtype=torch.float32)
    assert resident.info.heads == ("two", "three")
    assert {head: len(each) for head, each in resident.info.classes.items()} == {
        "two": 2,
        "three": 3,
    }
    assert not resident.info.causal
    resident.write({name: torch.full(pool.base.shape(name), 0.25) for name in pool.names})
    for model in resident.classifiers.values():
        for name in pool.names:
            assert bool((model.base_model.get_parameter(name) == 0.25).all())
