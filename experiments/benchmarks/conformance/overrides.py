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
    *("glmga", "paddleocr_vl", "cosmos3_edge"),
)
_SECTIONED_TEXT = (
    *("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "glm4v_text"),
    *("glm_ocr_text", "glmga_text", "paddleocr_vl_text", "cosmos3_edge_text"),
)
_THINKER = {"vision_start_token_id": 124}  # in their files, not among their class's entries
_CONFORMER = {"encoder_config": {"context_size": 16, "max_pos_emb": 32}}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_SLIDING_LAYERS = {
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank", "swa_v_head_dim"), 8),
    **dict.fromkeys(("swa_qk_nope_head_dim", "swa_qk_rope_head_dim"), 8),
    "swa_head_dim": 16,
}
_CODEC = {"num_filters": 4, "upsample_groups": 32}
_IMAGE_TOKEN = {"vocabulary_map": {"<image>": 127}}

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    **{key: {"text_config": _SECTIONS} for key in _SECTIONED},
    **dict.fromkeys(_SECTIONED_TEXT, _SECTIONS),
    "glm4v_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0]}}},
    "autoformer": {"prediction_length": 4},
    "informer": {"prediction_length": 4},
    "bit": {"num_groups": 8},
    "bridgetower": {"hidden_size": 64, "vision_config": {"hidden_size": 64}},
    "cvt": {"depth": [1, 2, 3]},
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    },
    "dots3_note": {"audio_config": {"adapter_input_size": 32}, "text_config": _SLIDING_LAYERS},
    "dots3_note_audio_encoder": {"adapter_input_size": 32},
    "dots3_note_text": _SLIDING_LAYERS,
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "granite4_vision": {
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "granite_speech": _CONFORMER,
    "granite_speech_plus": _CONFORMER,
    "hunyuan_vl": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 1, 1]}}},
    "lw_detr": {"backbone_config": {"num_windows": 4}},
    "lw_detr_vit": {"num_windows": 4},
    "mimi": _CODEC,
    "csm": {"codec_config": _CODEC},
    "encodec": {"num_filters": 4},
    "bark": {"codec_config": {"num_filters": 4}},
    "musicgen": {"audio_encoder": {"num_filters": 4}},
    "musicgen_melody": {"audio_encoder": {"num_filters": 4}},
    "efficientloftr": {"hidden_size": 256},
    "d_fine": {"backbone_config": {"out_features": ["stage2", "stage3", "stage4"]}},
    "pocket_tts_audio_tokenizer": {"upsample_groups": 32},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "neomme": {"head_dim": 16},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_latents": 16},
    "qwen3_omni_moe": {
        "talker_config": {
            "spatial_merge_size": 2,
            "text_config": {"shared_expert_intermediate_size": 16},
        }
    },
    "qwen4_exp_text": _INDEXER,
    "qwen4_exp": {"text_config": _INDEXER},
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
    "mistral4": {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "nemo_speechlm": {
        "text_config": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]}
    },
    "qwen2_5_omni_thinker": {**_THINKER, "text_config": _SECTIONS},
    "qwen3_omni_moe_thinker": {**_THINKER, "text_config": _SECTIONS},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "step3p7": {"text_config": {"sliding_window": 12}},
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8},
}
"""Type to entries of its configuration; of parts by the part's own entry."""
