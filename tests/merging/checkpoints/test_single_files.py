"""Models in one file: what lies beside it belongs to it, other weights do not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.saving.save import save_model
from merging.weights import CheckpointError
from tests import builders


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and beside its weights those of an expert under a name of their own."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    base = builders.llama(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    changed = {name: tensor + 0.5 for name, tensor in tensors.items()}
    save_file(changed, base / "tuned.safetensors", metadata={"format": "pt"})
    return base


def test_a_file_stands_for_a_model(folder: Path, tmp_path: Path) -> None:
    pool = ExpertPool.open(str(folder), {"tuned": str(folder / "tuned.safetensors")})
    for name in pool.names:
        torch.testing.assert_close(pool.deltas(name)[0], torch.full(pool.base.shape(name), 0.5))
    as_base = ExpertPool.open(
        str(folder / "tuned.safetensors"), {"old": str(folder / "model.safetensors")}
    )
    save_model(as_base, as_base.expert_weights("old"), tmp_path / "out")
    kept = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= kept
    assert not {name for name in kept if name.endswith(".safetensors")} - {"model.safetensors"}
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(folder / "model.safetensors").keys()
    )


def test_what_changes_is_read_again(folder: Path) -> None:
    before = Checkpoint.open(str(folder / "tuned.safetensors"))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 7}))
    after = Checkpoint.open(str(folder / "tuned.safetensors"))
    assert before.sha256 == after.sha256
    module = after.module(dtype=torch.float32, device=torch.device("cpu"))
    assert module.generation_config.eos_token_id == 7  # type: ignore[union-attr]


def test_an_adapter_under_its_own_name(folder: Path, tmp_path: Path) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", folder)
    plain = ExpertPool.open(str(folder), {"lora": str(adapter)})
    named = adapter / "style.safetensors"
    (adapter / "adapter_model.safetensors").rename(named)
    pool = ExpertPool.open(str(folder), {"lora": str(named)})
    assert pool.identities == plain.identities


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = (folder / "tuned.safetensors").rename(tmp_path / "alone" / "tuned.safetensors")
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside it"):
        Checkpoint.open(str(alone))
    with pytest.raises(CheckpointError, match=r"neither \.safetensors nor \.gguf"):
        Checkpoint.open(str(folder / "config.json"))
    alone.write_bytes(b"x" * 40)
    with pytest.raises(CheckpointError, match="is truncated or no safetensors file"):
        Checkpoint.open(str(alone))
