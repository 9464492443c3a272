"""What a checkpoint's config.json says: its configuration and the class that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from merging.weight_names import is_adapter, models_inside
from merging.weights import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

HeadKind: TypeAlias = Literal["inputs", "tokens", "spans"]
"""What a head classifies: whole inputs, single tokens, or where among them a span lies."""

_HEADS: dict[str, HeadKind] = {
    "ForSequenceClassification": "inputs",
    "ForImageClassification": "inputs",
    "ForTokenClassification": "tokens",
}

POOLER = "pooler."
"""The one part of an encoder that checkpoints may lack: some heads read it, others do not."""


def read_config(path: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Returns the configuration in `path`.

    Raises:
        CheckpointError: none or unreadable; of a kind that transformers does not know; code of
            the repository's own is wanted and not trusted; quantised weights.
    """
    file = path / "config.json"
    if is_adapter(path):
        raise CheckpointError(
            f"{path} is a PEFT adapter, no whole checkpoint; use it as an expert of its base"
        )
    if not file.is_file():
        raise CheckpointError(
            f"{path} has no config.json; expected a Hugging Face checkpoint{models_inside(path)}"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is no valid JSON object ({error})") from error
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING and "auto_map" in raw and not trust_remote_code:
        raise CheckpointError(
            f"{path} wants to run code of its own (auto_map in config.json); "
            "read that code, then set trust_remote_code to true"
        )
    for key in ("quantization_config", "quantization"):  # the second is MLX's
        if key in raw:
            raise CheckpointError(
                f"{path} is quantised ({key} in config.json); use the checkpoint in full precision"
            )
    try:
        config: PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code
        )
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise CheckpointError(
            f"{file}: transformers {transformers.__version__} cannot read model_type {kind!r} "
            f"({str(error).splitlines()[0]})"
        ) from error
    return config


def head_kind(architecture: str) -> HeadKind | None:
    """Returns what the head of its own that a class has classifies; None: it has none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES

    if (
        architecture in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values()
    ):  # other classes of this ending see images, or answer in words
        return "spans"
    return next((kind for ending, kind in _HEADS.items() if architecture.endswith(ending)), None)


def is_classifier_config(config: PreTrainedConfig) -> bool:
    """Whether `config` names a classifier of sequences, images, tokens or spans.

    A few types have no class without the head: their models are merged head and all.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    remote: dict[str, str] = getattr(config, "auto_map", None) or {}
    headless = type(config) in MODEL_MAPPING or "AutoModel" in remote
    return headless and any(head_kind(name) for name in config.architectures or ())


def architecture_of(
    path: Path, config: PreTrainedConfig, *, encoder: bool = False
) -> type[PreTrainedModel]:
    """Returns the class that `config` names, or the one that AutoModel would choose.

    `encoder`: the class without a head instead. Raises CheckpointError where there is none.
    """
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    kind = type(config)
    if encoder and kind in MODEL_MAPPING:
        return _single(MODEL_MAPPING[kind])
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    if not encoder and named and named[0] is not None:
        return _single(named[0])
    remote: dict[str, str] = getattr(config, "auto_map", None) or {}
    wanted = ("AutoModel",) if encoder else ("AutoModelForCausalLM", "AutoModel")
    for auto in wanted:
        if auto in remote and kind not in CONFIG_MAPPING.values():
            return _single(get_class_from_dynamic_module(remote[auto], str(path)))
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and not encoder:
        return _single(MODEL_FOR_CAUSAL_LM_MAPPING[kind])
    if kind in MODEL_MAPPING:
        return _single(MODEL_MAPPING[kind])
    raise CheckpointError(
        f"{path}: transformers has no model class for model_type {config.model_type!r}"
    )


def _single(entry: Any) -> type[PreTrainedModel]:
    cls: type[PreTrainedModel] = entry[0] if isinstance(entry, tuple | list) else entry
    return cls
