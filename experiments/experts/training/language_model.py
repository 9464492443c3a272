"""What is trained: all parameters of a causal language model, or a LoRA adapter on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from merging.checkpoints.checkpoint import Checkpoint, quiet_transformers
from merging.checkpoints.sources import resolve
from merging.seeding import stable_seed
from merging.zoo.store import SOURCE


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter: Hu et al. 2021, arXiv 2106.09685.

    Args:
        alpha: the product is scaled by ``alpha / rank``.
        dropout: of its input, in [0, 1).
        targets: names of the linear layers that get one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout}: it must lie in [0, 1)")


def open_model(
    base: str | Path,
    lora: Lora | None,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Returns the base, ready to be trained.

    Args:
        base: Hugging Face id, directory or ``zoo:NAME`` of a causal language model.
        seed: of the adapter's first factors.
        dtype: of the base's weights; an adapter's are float32.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(stable_seed(seed, "adapter"))
        model: Any = _causal(str(base), dtype)
        if lora is not None:
            config = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=list(lora.targets),
                task_type="CAUSAL_LM",
            )
            model = get_peft_model(model, config)
    return model.to(device)


def _causal(base: str, dtype: torch.dtype) -> Any:
    """Returns a causal language model; transformers cannot read the files of a zoo."""
    if base.startswith(SOURCE):
        module = Checkpoint.open(base).module(dtype=dtype, device=torch.device("cpu"))
        return module.requires_grad_(True)
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


def open_tokenizer(base: str | Path) -> Any:
    """Returns the base's tokenizer."""
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(resolve(str(base)))


def save(model: Any, base: str | Path, out: Path) -> None:
    """Writes what was trained into `out`: an adapter, or a model with its base's tokenizer."""
    with quiet_transformers():
        model.save_pretrained(out)
        if not hasattr(model, "peft_config"):
            open_tokenizer(base).save_pretrained(out)
