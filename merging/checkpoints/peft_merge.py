"""Adapters whose difference has no exact product here: peft merges them, tensor by tensor kept.

Imports peft, which is slow; only what reads such an adapter imports this file.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import set_peft_model_state_dict
from torch import Tensor

from merging.checkpoints.checkpoint import Checkpoint, quiet_transformers
from merging.checkpoints.naming import listing
from merging.rules.threads import one_thread
from merging.weights import CheckpointError

_NAME = "default"  # peft's for the only adapter
_PEFTS_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


@one_thread()
def merged_by_peft(
    source: str, path: Path, stored: Mapping[str, Tensor], base: Checkpoint
) -> dict[str, Tensor]:
    """Returns the tensors that peft's ``merge_and_unload`` changes, by the base's names, float32.

    The base is loaded in float32, whatever its dtype, and the adapter merged into it there.

    Args:
        stored: the adapter's tensors by the names of its file.

    Raises:
        CheckpointError: peft cannot merge this kind, the adapter does not fit the base, or the
            merge has other tensors than the base.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        try:
            model = _wrapped(source, path, stored, base)
            merged = model.merge_and_unload()
        except CheckpointError:
            raise
        except _PEFTS_ERRORS as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"adapter {source} cannot be merged by peft {peft.__version__} "
                f"({type(error).__name__}: {reason})"
            ) from error
    return _changed(source, merged.state_dict(), base)


def _wrapped(source: str, path: Path, stored: Mapping[str, Tensor], base: Checkpoint) -> Any:
    """Returns peft's model of base and adapter; refuses tensors that find no place, and gaps."""
    config = peft.PeftConfig.from_pretrained(str(path))
    config.inference_mode = True
    if config.is_prompt_learning:
        raise NotImplementedError("prompts are no part of the weights")
    module = base.module(dtype=torch.float32, device=torch.device("cpu"))
    model = peft.PeftModel(module, config, adapter_name=_NAME)
    report: Any = set_peft_model_state_dict(model, dict(stored), adapter_name=_NAME)
    own = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
    state, missing = model.state_dict(), set(report.missing_keys)
    filled = {state[name].data_ptr() for name in state if name not in missing}  # layers share some
    gaps = [
        name
        for name in report.missing_keys
        if own in name and f".{_NAME}" in name and state[name].data_ptr() not in filled
    ]
    if gaps:
        raise CheckpointError(
            f"adapter {source} lacks {len(gaps)} tensors that its adapter_config.json asks for: "
            f"{listing(gaps)}; save it again"
        )
    if report.unexpected_keys:
        raise CheckpointError(
            f"adapter {source} holds {len(report.unexpected_keys)} tensors that the base "
            f"{base.source} has no place for: {listing(report.unexpected_keys)}; it belongs to "
            "another base"
        )
    _refuse_tied(source, model, base)
    return model.eval()


def _refuse_tied(source: str, model: Any, base: Checkpoint) -> None:
    """Refuses layers whose weight is tied: peft would merge one use's difference into both.

    Layers trained as a whole or token by token are let through: peft ties or unties them.
    """
    tied = {name.rpartition(".")[0] for pair in base.aliases.items() for name in pair}
    for name, layer in model.named_modules():
        module = name.removeprefix("base_model.model.")
        by_token = isinstance(layer, peft.tuners.trainable_tokens.TrainableTokensLayer)
        if module in tied and isinstance(layer, BaseTunerLayer) and not by_token:
            raise CheckpointError(
                f"adapter {source} changes {module}, which is tied in the base {base.source}; "
                "train it without that target, or untie the base"
            )


def _changed(source: str, merged: Mapping[str, Tensor], base: Checkpoint) -> dict[str, Tensor]:
    """Returns what differs from the base; refuses what no tensor of the base can hold."""
    new = [name for name in merged if name not in base and name not in base.aliases]
    apart = [
        name
        for name, kept in base.aliases.items()
        if name in merged and not torch.equal(merged[name], merged[kept])
    ]
    if new or apart:
        raise CheckpointError(
            f"adapter {source} makes tensors that the base {base.source} has not or ties to "
            f"others: {listing(new + apart)}; train it without them, or untie the base"
        )
    changed = {}
    for name in base:
        if merged[name].shape != base.shape(name):
            raise CheckpointError(
                f"adapter {source}: {name} has shape {tuple(merged[name].shape)}, the base "
                f"{base.source} has {tuple(base.shape(name))}; it belongs to another base"
            )
        if not torch.equal(merged[name], base[name].to(merged[name].dtype)):
            changed[name] = merged[name].detach()
    if not changed:
        raise CheckpointError(f"adapter {source} changes no tensor of the base {base.source}")
    return changed
