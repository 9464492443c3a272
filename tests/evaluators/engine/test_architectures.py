"""Every kind of model: batches against transformers' own, one request at a time."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evaluators.engine.capabilities import Capabilities, measured
from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.requests import Generate, Generated, Likelihood, Loglikelihood
from tests import builders

_WINDOW = 12  # shorter than what prompts share
_SIZE = {
    "vocab_size": builders.VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_TEXT = {**_SIZE, "intermediate_size": 48, "num_key_value_heads": 2, "pad_token_id": 0}
_HEADS = {**_TEXT, "head_dim": 8}
_SLIDING = {**_TEXT, "sliding_window": _WINDOW}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {**_TEXT, "num_local_experts": 4, "num_experts_per_tok": 2}
_OLD = {"vocab_size": builders.VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_WIDTH = {"vocab_size": builders.VOCAB, "d_model": 32}
_STATE = {**_SIZE, "state_size": 8}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_RANKS = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}

KINDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen2", "phi", "olmo", "olmo2", "stablelm", "cohere"), _TEXT),
    **dict.fromkeys(("granite", "nemotron", "persimmon", "smollm3", "diffllama"), _TEXT),
    **dict.fromkeys(("qwen3", "gemma", "glm4", "helium"), _HEADS),
    **dict.fromkeys(("mistral", "starcoder2", "phi3"), _SLIDING),
    "llama dynamic": {
        **_TEXT,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
        "max_position_embeddings": 20,
    },
    "phi3 longrope": {
        **_TEXT,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0] * 4,
            "long_factor": [1.5, 2.0, 3.0, 4.0],
            "original_max_position_embeddings": 20,
        },
        "original_max_position_embeddings": 20,
    },
    "gemma2": {**_HEADS, "sliding_window": _WINDOW},
    "gemma3_text": {**_HEADS, "sliding_window": _WINDOW, "num_hidden_layers": 7},
    "mixtral": _LOCAL_EXPERTS,
    "granitemoe": _LOCAL_EXPERTS,
    "gpt_oss": {**_LOCAL_EXPERTS, "head_dim": 8, "sliding_window": _WINDOW},
    "qwen3_moe": {**_HEADS, **_EXPERTS},
    "deepseek_v3": {
        **_TEXT,
        **_RANKS,
        "num_key_value_heads": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "llama4_text": {
        **_HEADS,
        "num_hidden_layers": 4,
        "num_local_experts": 2,
        "intermediate_size_mlp": 32,
        "attention_chunk_size": _WINDOW,
    },
    "gpt2": _OLD,
    "gpt_bigcode": _OLD,
    "openai-gpt": _OLD,
    "ctrl": {**_OLD, "dff": 48},
    "gptj": {**_OLD, "rotary_dim": 4},
    "codegen": {**_OLD, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": builders.VOCAB,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": _WINDOW,
        "max_position_embeddings": 128,
    },
    "gpt_neox": {**_SIZE, "intermediate_size": 48},
    "opt": {**_SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": builders.VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": _SIZE,
    "falcon alibi": {**_SIZE, "alibi": True},
    "mpt": {**_WIDTH, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "xglm": {**_WIDTH, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "biogpt": {**_SIZE, "intermediate_size": 48},
    "bert decoder": {**_SIZE, "intermediate_size": 48, "is_decoder": True},
    "roc_bert": {**_SIZE, "intermediate_size": 48, "is_decoder": True},
    "roberta": {**_SIZE, "intermediate_size": 48, "is_decoder": True, "pad_token_id": 0},
    "bart": {
        **_WIDTH,
        "decoder_layers": 2,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "is_decoder": True,
        "is_encoder_decoder": False,
    },
    "modernbert-decoder": {
        **_SIZE,
        "intermediate_size": 48,
        "local_attention": _WINDOW,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
    },
    "mamba": _STATE,
    "falcon_mamba": _STATE,
    "mamba2": {**_STATE, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "rwkv": {**_SIZE, "attention_hidden_size": 32},
    "recurrent_gemma": {
        **_TEXT,
        "num_hidden_layers": 3,
        "attention_window_size": _WINDOW,
        "lru_width": 32,
    },
    "jamba": {
        **_TEXT,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {**_TEXT, **_MAMBA, "attn_layer_indices": [1], "mamba_n_groups": 1},
    "lfm2": {**_TEXT, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **_HEADS,
        **_EXPERTS,
        **_DELTA,
        "num_hidden_layers": 4,
        "shared_expert_intermediate_size": 16,
    },
    "minimax": {**_HEADS, "num_local_experts": 2},
    "falcon_h1": {**_TEXT, **_MAMBA, "mamba_d_ssm": 64},
    "nemotron_h": _TEXT,
}
_SLOW = {  # take long, or are near of kin to others
    *("bamba", "codegen", "ctrl", "deepseek_v3", "diffllama", "falcon_h1", "falcon_mamba"),
    *("glm4", "gpt_bigcode", "granitemoe", "helium", "lfm2", "llama4_text", "mamba2"),
    *("minimax", "modernbert-decoder", "nemotron_h", "olmo2", "qwen3_next"),
    *("roc_bert", "smollm3", "starcoder2"),
}
_CONFIGS = ((), (("no_repeat_ngram_size", 2), ("repetition_penalty", 1.3)))


def resident(kind: str, config: dict[str, Any]) -> Resident:
    """A model of that kind with weights far from a fresh one's."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.split()[0], **config))
    builders.perturb(model, seed=0, scale=0.15)
    model.generation_config.update(eos_token_id=2, pad_token_id=0)
    return Resident(model, tokenizer=builders.byte_tokenizer(), max_length=128)


def draw(count: int, noise: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(3, builders.VOCAB, (count,), generator=noise).tolist())


def requests() -> tuple[list[Loglikelihood], list[Generate]]:
    """Prompts by themselves and behind a common beginning, with two answers each."""
    noise = torch.Generator().manual_seed(2)
    shared = draw(2 * _WINDOW, noise)
    prompts = [draw(count, noise) for count in (1, 3, 17)]
    prompts += [shared + draw(count, noise) for count in (1, 9, 11, 20)]
    return (
        [Loglikelihood(prompt, draw(3, noise)) for prompt in prompts for _ in range(2)],
        [Generate(p, (9, 3)[i % 2], options=_CONFIGS[i % 2]) for i, p in enumerate(prompts)],
    )


def generated(model: Resident, request: Generate) -> str:
    """By a copy that was asked nothing before, as some kinds hold a state in their layers."""
    ids = torch.tensor([request.prompt])
    out = copy.deepcopy(model.module).generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        **dict(request.options or ()),
    )
    return str(model.info.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def log_likelihood(model: Resident, request: Loglikelihood) -> float:
    tokens, start = torch.tensor([request.context + request.continuation]), len(request.context)
    with torch.no_grad():
        logits = copy.deepcopy(model.module)(input_ids=tokens[:, :-1]).logits
    log_probs = logits[0, start - 1 :].log_softmax(dim=-1)
    return float(log_probs.gather(1, tokens[0, start:, None]).sum())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k in _SLOW else k for k in KINDS]
)
def test_batches_answer_as_transformers_one_by_one(kind: str) -> None:
    model, (asked, written) = resident(kind, KINDS[kind]), requests()
    texts = [generated(model, request) for request in written]
    expected = [log_likelihood(model, request) for request in asked]
    for batch_tokens in (1, 8192):
        answers = Engine(model, batch_tokens=batch_tokens).run([*asked, *written])
        found = [answer.total for answer in answers if isinstance(answer, Likelihood)]
        assert found == pytest.approx(expected, abs=2e-5)
        assert [answer.text for answer in answers if isinstance(answer, Generated)] == texts


@pytest.mark.parametrize("kind", ["mpt", "gpt_neo"])
def test_rows_behind_padding_in_a_cache_are_wrong_where_slots_count(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the measurement guards against: these answers are off once it is overruled."""
    model, (asked, written) = resident(kind, KINDS[kind]), requests()
    right = Engine(model).run([*asked, *written])
    assert model.capabilities == Capabilities(causal=True, grows=True, shares=False, length=128)
    unguarded = Capabilities(causal=True, grows=True, shares=True, length=128)
    monkeypatch.setitem(vars(model), "capabilities", unguarded)
    wrong = Engine(model).run([*asked, *written])
    one, other = ([a.total for a in answers[: len(asked)]] for answers in (right, wrong))
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.01
    assert right[len(asked) :] != wrong[len(asked) :]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "mpt", "gpt_neo", "mamba", "bart"])
def test_coarse_numbers_tell_the_same(kind: str, dtype: torch.dtype) -> None:
    module = resident(kind, KINDS[kind]).module
    assert measured(module.to(dtype), 128) == measured(module.float(), 128)


NOT_CAUSAL: dict[str, dict[str, Any]] = {
    "bert": {**_SIZE, "intermediate_size": 48},
    "xlnet": {**_WIDTH, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "xlm": {"vocab_size": builders.VOCAB, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "cpmant": {
        "vocab_size": builders.VOCAB,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "dim_head": 8,
        "dim_ff": 48,
        "num_hidden_layers": 2,
        "prompt_length": 4,
    },
}


@pytest.mark.parametrize("kind", list(NOT_CAUSAL))
@pytest.mark.parametrize("request_", [Generate((5, 6), 3), Loglikelihood((5,), (6,))])
def test_models_that_look_ahead_are_refused(kind: str, request_: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = resident(kind, NOT_CAUSAL[kind])
    with pytest.raises(ValueError, match=f"{type(model.module).__name__} lets a token change"):
        Engine(model).run([request_])
