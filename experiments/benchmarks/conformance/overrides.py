"""What the names of entries do not tell: changes by hand, type by type."""

from collections.abc import Mapping
from typing import Any

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_ROPE = {"rope_theta": 1e4, "rope_type": "default"}
_SECTIONS = {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}
_EXPERTS = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
_SECTIONED = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm46v", "glm4v", "glm_ocr"),
    *("glmga", "paddleocr_vl", "qwen2_5_omni_thinker", "cosmos3_edge"),
)
_SECTIONED_TEXT = (
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "glm4v_text"),
    *("glm_ocr_text", "glmga_text", "paddleocr_vl_text", "cosmos3_edge_text"),
)
_IMAGE_TOKEN = {"vocabulary_map": {"<image>": 127}}

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    **{key: {"text_config": _SECTIONS} for key in _SECTIONED},
    **dict.fromkeys(_SECTIONED_TEXT, _SECTIONS),
    "glm4v_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0]}}},
    "bamba": {**_MAMBA, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "chameleon": _IMAGE_TOKEN,
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": _EXPERTS,
    "dots1": _EXPERTS,
    "emu3": _IMAGE_TOKEN,
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "esm": {"vocab_size": 128, "pad_token_id": 0, "mask_token_id": 4},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": {**_MAMBA, "layers_block_type": ["mamba", "attention"]},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "hrm_text": {"num_layers_per_stack": None, "num_hidden_layers": 2},
    "mistral4": {"head_dim": 16, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "step3p7": {"text_config": {"sliding_window": 12}},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8},
}
"""Type to entries of its configuration; of parts by the part's own entry."""
