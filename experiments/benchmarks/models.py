"""Random models to measure on: base, experts and adapters; a tokenizer with one token per byte."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
RANK = 8  # of an adapter


def random_llama(
    *, hidden: int = 512, layers: int = 6, heads: int = 8, vocabulary: int = VOCABULARY
) -> Any:
    """Returns a Llama in float32 with random weights; 21 million parameters by default."""
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def save_experts(
    model: Any, folder: Path, count: int = 3, *, noise: float = 0.01
) -> tuple[str, dict[str, str]]:
    """Saves a model as ``base``, and experts that have normal noise on every entry of it.

    Returns:
        Directory of the base; name to directory of the experts.
    """
    base = [parameter.detach().clone() for parameter in model.parameters()]
    names = [f"expert{number}" for number in range(count)]
    for number, name in enumerate(["base", *names]):
        draw = torch.Generator().manual_seed(number)
        if number:
            with torch.no_grad():
                for parameter, start in zip(model.parameters(), base, strict=True):
                    drawn = torch.randn(start.shape, generator=draw).to(start.dtype)
                    parameter.copy_(start + noise * drawn)
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return str(folder / "base"), {name: str(folder / name) for name in names}


def random_factors(model: Any, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns factors of the blocks' linear layers: B ``(rows, RANK)``, A ``(RANK, columns)``.

    Their products B A change a layer by about 0.1 of what a random layer does.
    """
    noise = torch.Generator().manual_seed(seed)
    factors = {}
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            rows, columns = parameter.shape
            a = torch.randn(RANK, columns, generator=noise) / columns**0.5
            factors[name] = 0.1 * torch.randn(rows, RANK, generator=noise), a
    return factors


def byte_tokenizer() -> Any:
    """Returns a tokenizer with ids 3 to 258 for bytes; it decodes what lies above to nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
