"""Configurations of any type made tiny: by the names of their entries, and changes by hand."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 128
LENGTH = 128  # most tokens
WINDOW = 12  # of sliding attention: shorter than what prompts share
_HEADS = 4

_SMALL: tuple[tuple[int, str], ...] = (
    (
        VOCABULARY,
        "vocab_size|n_vocab|num_embeddings|codebook_size|max_speech_tokens|max_text_tokens",
    ),
    (LENGTH, r"(position_embeddings|n_positions|n_ctx|max_seq_len|max_.*(positions|length))$"),
    (
        WINDOW,
        "(sliding_window(_size)?|attention_chunk_size|local_attention|attention_window_size)$",
    ),
    (2, "(num_)?(key_value|kv)_heads|num_kv_heads|n_kv_heads|num_query_groups"),
    (4, "^rotary_dim$"),
    (2, "^moe_k$"),
    (16, "^qk_head_dim$"),
    (32, "index_n_heads|index_num_heads"),  # with few, scores tie at zero
    (16, "index_top_?k"),
    (8, "^mamba_(n_|num_)?heads$"),
    (_HEADS, "heads?$|_heads_|attn_heads|attention_heads"),
    (1, "^(first_k_dense_replace|moe_layer_start_index|num_dense_layers)$"),
    (2, "experts_per_tok|top_?k(_experts)?$|num_selected_experts"),
    (4, "(num|n)_(local_|routed_|moe_)?experts$|moe_num_experts"),
    (1, "n_shared_experts|num_shared_experts|n_group$|topk_group$|num_expert_group"),
    (8, "(kv|q)_lora_rank|dim_head|head_dim|d_kv$|key_length|state_size|d_state|(dt|step)_rank"),
    (32, "image_size|^input_size$|img_size"),
    (8, "patch_size$|patch_stride"),
    (8, "lora_rank|bottleneck|adapter_(hidden|size|rank)|low_rank"),
    (48, "(intermediate|ffn|ff|inner|mlp|feed_?forward).*(size|dim|hidden)"),
    (48, "^(dff|d_ff|d_inner|n_inner|dim_ff|linear_units|dim_feedforward)$"),
    (32, "hidden|embed|embd|proj|width|model|output|channel|emb|attention|lru|feature"),
    (32, "_dim$|^dim"),
)
"""The most that an integer entry becomes: of the first pattern that its name matches."""

_KEPT = re.compile(
    "num_channels|in_channels|type_vocab|dropout|token_id|token_index|_type$|num_labels|ratio"
    "|_mult$|_factor|kernel|stride|_id$|interval|period|freq|chunk_size_feed|image_channels"
    "|audio_channels|_expand|expansion|out_features|initializer|_std$|scale|_eps|padding"
    "|dilation|num_hidden_groups|_rate$|scaling|multiplier|_layer$|_layers$|num_mel|n_mels"
    "|rope_theta|_cost$|coefficient|_seconds$|_stage|_tokens|_layer_index"
)
_LAYERS = re.compile(
    "^(num_|n_|num_hidden_|encoder_|decoder_|num_encoder_|num_decoder_)?"
    "(hidden_)?(layers?|blocks|depth)$"
)
_DEPTHS = ("depths", "layers", "stage_num_blocks", "blocks_per_stage", "stage_numb_of_layers")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "depth")
_HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "decoder_attention_heads")
_KEY_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "decoder_num_key_value_heads")
_LEFT_OUT = {
    *("transformers_version", "architectures", "dtype", "id2label", "label2id", "_name_or_path"),
    *("stage_names", "out_features", "out_indices", "per_layer_config"),
}
"""What follows from other entries, or from none."""


def tiny(model_type: str, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns a configuration of that type for a model of some ten thousand parameters.

    Args:
        changes: entries that take the place of those that the names give; of a part under its own.
    """
    kind = CONFIG_MAPPING[model_type]
    small = _small(kind().to_dict())
    _replace(small, changes)
    return kind(**small)


def _small(full: Mapping[str, Any]) -> dict[str, Any]:
    small = {key: _entry(key, value) for key, value in full.items() if key not in _LEFT_OUT}
    _cut_layers(full, small)
    _match_heads(full, small)
    _settle_tokens(small)
    return small


def _entry(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, dict):
        named = all(isinstance(name, str) for name in value)
        return _small(value) if named and not key.startswith("rope") else value
    if isinstance(value, int):
        return _number(key, value)
    if isinstance(value, list | tuple) and value and key in _DEPTHS:
        return [1 for _ in value]
    if isinstance(value, list | tuple) and all(type(one) is int for one in value):
        return [_number(key, one) for one in value]
    return value


def _number(key: str, value: int) -> int:
    if _LAYERS.match(key):
        return min(value, 2)
    if _KEPT.search(key) or value <= 0:
        return value
    for most, pattern in _SMALL:
        if re.search(pattern, key):
            return 2 if most == _HEADS and value == 3 else min(value, most)
    return value


def _cut_layers(full: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Keeps a layer of each kind, where lists have an entry for each layer."""
    key = next((k for k in _COUNTS if isinstance(full.get(k), int) and full[k] > 2), None)
    lists = {
        name: value
        for name, value in full.items()
        if key is not None and isinstance(value, list | tuple) and len(value) == full[key]
    }
    if key is None or not lists:
        return
    kinds = [repr(entries) for entries in zip(*lists.values(), strict=True)]
    chosen = sorted({kinds.index(kind) for kind in kinds})[:6]
    chosen = chosen if len(chosen) > 1 else [0, 1]
    small |= {name: [_entry(name, value[i]) for i in chosen] for name, value in lists.items()}
    small[key] = len(chosen)


def _match_heads(full: Mapping[str, Any], small: dict[str, Any]) -> None:
    """Leaves as many keys as heads where there were, and gives heads a size that had none."""
    heads = next((key for key in _HEAD_COUNTS if isinstance(full.get(key), int)), None)
    if heads is None:
        return
    for key in _KEY_COUNTS:
        if key in full and full[key] in (None, full[heads]):
            small[key] = small[heads]
    if "head_dim" in full and full["head_dim"] is None:
        small["head_dim"] = 8


def _settle_tokens(small: dict[str, Any]) -> None:
    """Moves special tokens into the vocabulary, each its own."""
    beyond = [
        key
        for key, value in small.items()
        if re.search("(_id|token_index)$", key) and type(value) is int and value >= VOCABULARY
    ]
    small |= {key: VOCABULARY - 1 - place for place, key in enumerate(beyond)}


def _replace(content: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), dict):
            _replace(content[key], value)
        else:
            content[key] = value
