"""LoRA on the top of a split model, and the ordinary expert that it becomes."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experiments.experts.sentences.training import new_classifier
from experiments.experts.split.halves import blocks_of
from experiments.experts.training.language_model import Lora, open_tokenizer
from merging.checkpoints.architecture import POOLER
from merging.checkpoints.checkpoint import quiet_transformers
from merging.seeding import stable_seed


def open_classifier(base: Path, classes: int, *, seed: int, label: str) -> Any:
    """Returns base and a new head, float32, in evaluation mode; it knows a token to pad with."""
    with quiet_transformers():
        model: Any = new_classifier(base, classes, seed=seed, label=label)
    model.train(False)
    config = model.config.get_text_config()
    if config.pad_token_id is None:  # decoders often have none: any token will do, it is masked
        config.pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
    return model


def lora_config(classifier: Any, blocks: int, lora: Lora) -> LoraConfig:
    """Returns LoRA behind block `blocks`, and the head trained in full.

    Args:
        classifier: whole.
        lora: `targets` are ends of names; none: every linear layer behind the split.

    Raises:
        ValueError: no layer behind the split has such a name.
    """
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        # An expression: a long list peft shortens to ends, which fit more in a whole model.
        target_modules="|".join(map(re.escape, _targets(classifier, blocks, lora))),
        modules_to_save=_head(classifier),
        task_type="SEQ_CLS",
    )


def adapted(model: Any, config: LoraConfig, *, seed: int) -> PeftModel:
    """Returns the model, whole or the top of a split one, with the layers of `config` adapted."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(stable_seed(seed, "adapter"))
        return get_peft_model(model, copy.deepcopy(config))  # peft adds to it


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns what requires a gradient, by name."""
    return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def save_expert(
    classifier: Any, base: Path, trained: Mapping[str, Tensor], config: LoraConfig, out: Path
) -> None:
    """Writes the whole classifier to `out`, adapter folded in, and the adapter to ``out/adapter``.

    Pools of classifiers take full checkpoints, each with a head of its own; peft takes the
    adapter.

    Args:
        classifier: whole, fresh from `open_classifier`; it is changed.
        trained: of the adapted top, as `trained_tensors` names it.
    """
    whole = adapted(classifier, config, seed=0)
    with torch.no_grad():
        for name, tensor in trained_tensors(whole).items():
            tensor.copy_(trained[name])
    with quiet_transformers():
        whole.save_pretrained(str(out / "adapter"))
        whole.merge_and_unload().save_pretrained(out)
        open_tokenizer(base).save_pretrained(out)


def _targets(classifier: Any, blocks: int, lora: Lora) -> list[str]:
    encoder = classifier.base_model_prefix
    stack, _ = blocks_of(classifier.base_model)
    inside = re.compile(rf"{re.escape(encoder)}\.({re.escape(stack)}\.(?P<block>\d+)\.|{POOLER})")
    names = []
    for name, module in classifier.named_modules():
        found = inside.match(name)
        if found and isinstance(module, nn.Linear | Conv1D):
            behind = found["block"] is None or int(found["block"]) >= blocks
            wanted = not lora.targets or name.endswith(tuple(lora.targets))
            names += [name] if behind and wanted else []
    if not names:
        ends = f" ends in {' or '.join(lora.targets)}" if lora.targets else ""
        raise ValueError(
            f"no linear layer behind block {blocks} of {type(classifier).__name__}{ends}, so that "
            "there is nothing to adapt: give fewer blocks, or other lora.targets"
        )
    return names


def _head(classifier: Any) -> list[str]:
    children = classifier.named_children()
    own = {n: c for n, c in children if n != classifier.base_model_prefix}
    return [name for name, child in own.items() if any(True for _ in child.parameters())]
