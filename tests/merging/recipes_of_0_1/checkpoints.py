"""The experts of the old recipes: checkpoints whose bytes are the same on every machine.

The seeds of random methods follow from the experts' hashes, so no number may come from torch.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from tests import builders

EXPERTS = ("code", "prose", "maths")
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 20}
_TARGETS = {  # of the adapters: layer -> (out, in)
    f"model.layers.{layer}.{module}": shape
    for layer in (0, 1)
    for module, shape in (("self_attn.q_proj", (16, 16)), ("mlp.up_proj", (24, 16)))
}


def write_models(folder: Path) -> ExpertPool:
    """Writes a base and three experts and opens them."""
    base = builders.llama(folder / "base", **SIZES)
    experts = {name: str(builders.llama(folder / name, **SIZES)) for name in EXPERTS}
    state = {key: _numbers("base", key, shape) for key, shape in _shapes(base).items()}
    _save(state, base / "model.safetensors")
    for name, path in experts.items():
        moved = {k: t + _numbers(name, k, t.shape) / 8 for k, t in state.items()}
        _save(moved, Path(path) / "model.safetensors")
    return ExpertPool.open(str(base), experts)


def write_adapters(folder: Path) -> ExpertPool:
    """Opens three adapters of the base that `write_models` wrote."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
    for name in EXPERTS:
        path = folder / f"{name}-adapter"
        path.mkdir()
        text = json.dumps(config | {"base_model_name_or_path": str(folder / "base")})
        (path / "adapter_config.json").write_text(text)
        factors = {}
        for layer, (rows, columns) in _TARGETS.items():
            for side, shape in (("A", (2, columns)), ("B", (rows, 2))):
                key = f"base_model.model.{layer}.lora_{side}.weight"
                factors[key] = _numbers(name, key, shape)
        _save(factors, path / "adapter_model.safetensors")
    adapters = {name: str(folder / f"{name}-adapter") for name in EXPERTS}
    return ExpertPool.open(str(folder / "base"), adapters)


def _shapes(path: Path) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in load_file(path / "model.safetensors").items()}


def _numbers(owner: str, key: str, shape: tuple[int, ...]) -> Tensor:
    """Returns float32 multiples of 2^-17 in [-1/4, 1/4), which sums of a few hold exactly."""
    count = int(np.prod(shape))
    raw = np.random.SFC64(zlib.crc32(f"{owner} {key}".encode())).random_raw(count)
    numbers = (raw >> np.uint64(48)).astype(np.int64) - 2**15
    return torch.from_numpy(numbers.astype(np.float32) / 2**17).reshape(shape)


def _save(state: dict[str, Tensor], path: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, {"format": "pt"})
