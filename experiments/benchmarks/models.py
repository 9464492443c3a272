"""A random language model to measure on, and a tokenizer with one token per byte."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096


def random_llama(*, hidden: int = 512, layers: int = 6, seed: int = 0) -> LlamaForCausalLM:
    """Returns a Llama in float32 with random weights; 21 million parameters by default."""
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def byte_tokenizer() -> Any:
    """Returns a tokenizer with ids 3 to 258 for bytes; it decodes what lies above to nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
