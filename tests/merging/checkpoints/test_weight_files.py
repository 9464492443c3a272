"""Which files of a folder are its weights: those that transformers and peft load, and no other."""

import json
import random
import shutil
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.weight_files import WeightFiles
from merging.weights import CheckpointError
from tests import builders

CPU = torch.device("cpu")
NAME = "model.norm.weight"
Tensors = dict[str, torch.Tensor]


class Runs:
    """Would leave a trace if any pickle that holds it were opened by force."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def leave_training_state(path: Path) -> None:
    """What transformers' Trainer puts into a checkpoint-N."""
    torch.save({"state": {}, "param_groups": []}, path / "optimizer.pt")
    torch.save({"last_epoch": 3}, path / "scheduler.pt")
    torch.save(
        {"python": random.getstate(), "numpy": np.random.get_state()}, path / "rng_state.pth"
    )
    torch.save(Runs(path.parent / "ran"), path / "training_args.bin")
    (path / "trainer_state.json").write_text("{}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.llama(tmp_path_factory.mktemp("base") / "base")


def write_sharded(path: Path, name: str, tensors: Tensors, save: Callable[..., Any]) -> None:
    stem, _, suffix = name.partition(".")
    shard = f"{stem}-00001-of-00001.{suffix}"
    save(tensors, path / shard)
    content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    (path / f"{name}.index.json").write_text(json.dumps(content))


def save_safetensors(tensors: Tensors, file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


SETS: tuple[Callable[[Path, Tensors], Any], ...] = (
    lambda path, tensors: save_safetensors(tensors, path / "model.safetensors"),
    lambda path, tensors: write_sharded(path, "model.safetensors", tensors, save_safetensors),
    lambda path, tensors: torch.save(tensors, path / "pytorch_model.bin"),
    lambda path, tensors: write_sharded(path, "pytorch_model.bin", tensors, torch.save),
)


@pytest.mark.parametrize(
    "held", chain.from_iterable(combinations(range(len(SETS)), n) for n in range(1, 5))
)
def test_of_several_sets_of_weights_it_is_the_one_that_transformers_loads(
    base: Path, tmp_path: Path, held: tuple[int, ...]
) -> None:
    path = shutil.copytree(base, tmp_path / "several")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    for number in held:
        SETS[number](path, tensors | {NAME: torch.full((32,), float(number))})
    leave_training_state(path)
    save_safetensors(tensors, path / "model.fp16.safetensors")  # a variant is loaded if asked for
    checkpoint = Checkpoint.open(str(path))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path).state_dict()
    module = checkpoint.module(dtype=torch.float32, device=CPU).state_dict()
    assert torch.equal(checkpoint[NAME], loaded[NAME])
    assert torch.equal(module[NAME], loaded[NAME])
    assert not (tmp_path / "ran").exists()


def test_the_file_that_the_configuration_names_comes_first(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "named")
    tensors = load_file(path / "model.safetensors")
    save_safetensors(tensors | {NAME: torch.full((32,), 7.0)}, path / "other.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["transformers_weights"] = "other.safetensors"
    (path / "config.json").write_text(json.dumps(config))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path).state_dict()
    assert torch.equal(Checkpoint.open(str(path))[NAME], loaded[NAME])


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_whole_model_with_an_adapter_beside_it_is_the_model_everywhere(
    base: Path, tmp_path: Path, pickled: bool, sharded: bool
) -> None:
    """As merge_and_unload and save_pretrained into the adapter's folder leave it."""
    path = builders.lora_adapter(tmp_path / "both", base)
    tensors = load_file(base / "model.safetensors") | {NAME: torch.full((32,), 7.0)}
    shutil.copy(base / "config.json", path)
    SETS[2 * pickled + sharded](path, tensors)
    checkpoint = Checkpoint.open(str(path))
    module = checkpoint.module(dtype=torch.float32, device=CPU).state_dict()
    expert = ExpertPool.open(str(base), {"e": str(path)}).expert_weights("e")
    assert set(module) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint[name], tensor)
        assert torch.equal(module[name], tensor)
        assert torch.equal(expert[name], tensor)


@pytest.mark.parametrize("beside", ["checkpoint of a trainer", "value head", "base's config.json"])
def test_an_adapter_is_what_peft_loads(base: Path, tmp_path: Path, beside: str) -> None:
    path = builders.lora_adapter(tmp_path / "adapter", base)
    if beside == "checkpoint of a trainer":
        leave_training_state(path)
        file = path / "adapter_model.safetensors"
        torch.save(load_file(file), path / "adapter_model.bin")
        file.unlink()
    elif beside == "value head":  # of trl's PPO
        torch.save({"v_head.summary.weight": torch.zeros(1, 32)}, path / "pytorch_model.bin")
    else:
        shutil.copy(base / "config.json", path)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged: Any = peft.PeftModel.from_pretrained(model, path)
    wanted = merged.merge_and_unload().state_dict()
    expert = ExpertPool.open(str(base), {"e": str(path)}).expert_weights("e")
    assert len(expert) == 4
    for name in expert:
        torch.testing.assert_close(expert[name], wanted[name])
    with pytest.raises(CheckpointError, match="is a PEFT adapter, no whole checkpoint"):
        Checkpoint.open(str(path))


@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_of_folders_is_refused_with_the_name_of_the_last(
    base: Path, tmp_path: Path, whole: bool
) -> None:
    for step in (900, 1000):
        folder = tmp_path / f"run/checkpoint-{step}"
        if whole:
            shutil.copytree(base, folder)
        else:
            builders.lora_adapter(folder / "code", base)
    wanted = "checkpoint-900.* or .*checkpoint-1000" + ("" if whole else "/code")
    with pytest.raises(CheckpointError, match=rf"has no config\.json.*; name .*{wanted}$"):
        ExpertPool.open(str(base), {"e": str(tmp_path / "run")})


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, np.uint8, np.uint32])
@pytest.mark.parametrize("pickled", [False, True])
def test_numbers_of_few_bits_are_called_so(
    base: Path, tmp_path: Path, kind: Any, pickled: bool
) -> None:
    path = shutil.copytree(base, tmp_path / "packed")
    file = path / "model.safetensors"
    tensors = load_file(file)
    if kind in (np.uint8, np.uint32):  # several numbers in one: bitsandbytes, MLX
        packed = {k: np.zeros((len(v), 4), kind) for k, v in tensors.items() if "proj" in k}
        packed["model.layers.0.mlp.up_proj.scales"] = np.zeros((64, 1), np.float16)
        save_numpy(packed, file, metadata={"format": "mlx"})
    else:
        save_safetensors({k: v.to(kind) for k, v in tensors.items()}, file)
    if pickled:
        torch.save(load_file(file), path / "pytorch_model.bin")
        file.unlink()
    with pytest.raises(CheckpointError, match=r"\.weight is stored as .*full precision"):
        ExpertPool.open(str(base), {"e": str(path)})


def test_quantised_by_mlx(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "mlx")
    config = json.loads((path / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is quantised \(quantization in config\.json\)"):
        Checkpoint.open(str(path))


def test_what_no_loader_knows_is_no_weights(base: Path, tmp_path: Path) -> None:
    path = shutil.copytree(base, tmp_path / "odd")
    torch.save(load_file(path / "model.safetensors"), path / "consolidated.00.pth")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights; .* or pytorch_model\.bin\.ind"):
        WeightFiles.find(path)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_changes_in_use_is_named(
    base: Path, tmp_path: Path, pickled: bool, begun: bool
) -> None:
    """What was hashed and found finite is what is read, or nothing is."""
    path, save = tmp_path / "changing", torch.save if pickled else save_safetensors
    shutil.copytree(base, path)
    file = path / ("pytorch_model.bin" if pickled else "model.safetensors")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    save(tensors, file)
    found = WeightFiles.find(path)
    if begun:
        assert found[NAME].equal(tensors[NAME])
    save({name: 2 * tensor for name, tensor in tensors.items()}, path / "other")
    (path / "other").replace(file)
    with pytest.raises(CheckpointError, match=rf"{file.name} changed while it was in use"):
        found[NAME]
