"""`adapter_rank`: a merge and a search leave an adapter beside the model, or refuse at once."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests import builders
from tests.experiments.local import evomerge, overrides, write_texts


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with three LoRA experts, under the names that `overrides` gives, and texts."""
    root = tmp_path_factory.mktemp("adapters")
    base = builders.llama(root / "base")
    for seed, name in enumerate(("code", "prose", "maths")):
        builders.lora_adapter(root / f"base-{name}", base, rank=2, seed=seed)
    for i, split in enumerate(("search", "selection", "report")):
        write_texts(root / f"{split}.jsonl", first=100 * i)
    return root


def assert_same_model(base: Path, adapter: Path, model: Path) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(base)
    found = peft.PeftModel.from_pretrained(loaded, adapter).merge_and_unload().state_dict()
    wanted = transformers.AutoModelForCausalLM.from_pretrained(model).state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6)


def experts(root: Path) -> list[str]:
    return [option for option in overrides(root) if option.startswith("experts")]


def test_merge_writes_it_beside_the_model(adapters: Path, tmp_path: Path) -> None:
    line = [*experts(adapters), "method=knots", "out=merged", "adapter_rank=6", "device=cpu"]
    done = evomerge("merge", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "adapter of rank 6: relative error" in done.stdout
    out = tmp_path / "merged"
    assert_same_model(adapters / "base", out / "adapter", out)


@pytest.mark.parametrize("space", ["coefficients", "factors"])
def test_search_writes_it_of_its_winner(adapters: Path, tmp_path: Path, space: str) -> None:
    chosen = {
        "coefficients": ["strategy=model_swarms", "strategy.popsize=4"],
        "factors": [
            "strategy=mergevolve",
            "strategy.popsize=3",
            "space=factors",
            "noise.unit=one",
        ],
    }[space]
    line = overrides(adapters, *chosen, f"out={tmp_path}/run", "adapter_rank=6")
    done = evomerge("search", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "adapter of rank 6: relative error" in done.stdout
    run = tmp_path / "run"
    assert_same_model(adapters / "base", run / "adapter", run / "model")
    rebuilt = evomerge("rebuild", f"{run}/recipe.json", "--out", "again", cwd=tmp_path)
    assert rebuilt.returncode == 0, rebuilt.stderr
    first, again = run / "model" / "model.safetensors", tmp_path / "again" / "model.safetensors"
    assert first.read_bytes() == again.read_bytes()


def test_experts_that_no_adapter_can_hold_are_refused_before_work(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base", tie=True)
    builders.experts_of(base, 3, 0.02)
    line = [*experts(tmp_path), "out=merged", "adapter_rank=4", "device=cpu"]
    done = evomerge("merge", *line, cwd=tmp_path)
    assert done.returncode != 0
    assert "no adapter can hold model.embed_tokens.weight, which is tied" in done.stderr
    assert not (tmp_path / "merged").exists()
