"""Halves of tiny encoders and decoders: together the whole, to the bit; the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from experiments.experts.split.halves import blocks_of, split
from tests.builders import VOCAB

BLOCKS = 3
TEXT = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "num_hidden_layers": BLOCKS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
FIT: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": {**SIZES, "pad_token_id": 1},
    "distilbert": {"n_layers": BLOCKS, "dim": 32, "n_heads": 4, "hidden_dim": 64},
    "mpnet": SIZES,  # its blocks return tuples
    "llama": {**SIZES, "num_key_value_heads": 2},
    "gpt2": {"n_layer": BLOCKS, "n_embd": 32, "n_head": 4},
    "gemma3_text": {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "layer_types": SLIDING},
}
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "albert": (SIZES, "AlbertModel cannot be split: .* holds 1 blocks, .* says 3"),
    "bart": ({"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "2 lists of blocks"),
    "xlnet": ({"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, r"shape \(5, 2, 32\)"),
}


def classifier(kind: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**TEXT, **options}, num_labels=3)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("kind", FIT)
def test_the_halves_are_the_whole_to_the_bit_wherever_it_is_cut(kind: str) -> None:
    model = classifier(kind, FIT[kind])
    tokens = torch.randint(3, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))
    tokens[1, 4:] = model.config.pad_token_id
    mask = (tokens != model.config.pad_token_id).long()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        whole = model(input_ids=tokens, attention_mask=mask).logits
        seen = set()
        for blocks in range(BLOCKS + 1):
            bottom, top = split(model, blocks)
            states = bottom.states(tokens, mask)
            assert torch.equal(top(states, mask), whole), blocks
            one, full = tokens[:1], torch.ones(1, 9, dtype=torch.int64)
            assert torch.equal(bottom.states(one, full), bottom.states_of(bottom.words(one), full))
            assert not torch.equal(top(states + 1, mask), whole), "the states are what it reads"
            own = {id(parameter) for parameter in model.parameters()}
            assert {id(parameter) for parameter in top.parameters()} <= own
            names = {name for name, _ in top.model.named_parameters()}
            assert names <= set(before), "by the whole model's names"
            seen.add(len(names))
    assert len(seen) == BLOCKS + 1, "each block more in the bottom is one less in the top"
    assert len(blocks_of(model.base_model)[1]) == BLOCKS
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_split_is_refused_by_name(kind: str) -> None:
    options, reason = UNFIT[kind]
    with pytest.raises(ValueError, match=reason):
        split(classifier(kind, options), 1)


def test_a_model_whose_later_blocks_read_the_tokens_is_refused() -> None:
    model = classifier("bert", SIZES)
    embed = model.bert.embeddings.word_embeddings
    tokens: list[torch.Tensor] = []
    embed.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    model.bert.encoder.layer[2].register_forward_hook(
        lambda block, args, output: output + tokens[-1].unsqueeze(-1)
    )
    with pytest.raises(ValueError, match="do not compute what the whole does"):
        split(model, 1)


@pytest.mark.parametrize("blocks", [-1, BLOCKS + 1])
def test_a_place_outside_of_the_model_is_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=rf"blocks={blocks}: BertModel has 3: give 0 to 3"):
        split(classifier("bert", SIZES), blocks)
