"""Gradient training of the quickstart's models: the base on all domains, an expert on one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.experts.quickstart.corpus import Document
from experiments.experts.quickstart.tokenizer import SPECIAL, VOCABULARY_SIZE, byte_tokenizer
from experiments.experts.training.loop import (
    Schedule,
    adamw,
    clipped_step,
    gradient_of,
    train_on,
)
from merging.seeding import generator, stable_seed

PAD, START, END = range(len(SPECIAL))


@dataclass(frozen=True)
class ModelSize:
    """Shape of the Llama.

    Args:
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        context: most tokens that the model reads.
    """

    hidden: int = 96
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 128


@dataclass(frozen=True, eq=False)
class Stream:
    """One domain's training text as token ids, and the places where a line starts.

    Args:
        tokens: ``(bytes,)`` int64, documents one after another, each closed by the end token.
        starts: ``(lines,)`` int64, indices into `tokens`.
    """

    tokens: Tensor
    starts: Tensor

    @classmethod
    def of(cls, documents: Sequence[Document], *, window: int) -> Stream:
        """Returns the stream of these documents; ValueError: less text than one window."""
        ids = _ids_of_ascii()
        pieces = [
            torch.cat([ids[list(document.text.encode("ascii"))], torch.tensor([END])])
            for document in documents
        ]
        tokens = torch.cat(pieces)
        ends = (tokens == ids[ord("\n")]) | (tokens == END)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends.nonzero().flatten() + 1])
        starts = starts[starts + window <= len(tokens)]
        if not len(starts):
            raise ValueError(f"training text of {len(tokens)} tokens, expected at least {window}")
        return cls(tokens, starts)

    def windows(self, count: int, length: int, draw: torch.Generator) -> Tensor:
        """Returns ``(count, length)`` tokens from line starts; half begin with the start token."""
        starts = self.starts[torch.randint(len(self.starts), (count,), generator=draw)]
        text = self.tokens[starts[:, None] + torch.arange(length)]
        marked = torch.cat([torch.full((count, 1), START), text[:, :-1]], dim=1)
        with_start = torch.rand(count, 1, generator=draw) < 0.5
        return torch.where(with_start, marked, text)


def _ids_of_ascii() -> Tensor:
    """Returns ``(128,)`` the token of every ASCII character."""
    tokenizer = byte_tokenizer(1)
    return torch.tensor([tokenizer.encode(chr(byte))[0] for byte in range(128)])


def llama_config(size: ModelSize, vocabulary: int) -> LlamaConfig:
    """Returns the configuration of a small float32 Llama with the tokens of `byte_tokenizer`."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.context,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        tie_word_embeddings=False,
        dtype="float32",
    )


def new_model(size: ModelSize, *, seed: int) -> LlamaForCausalLM:
    """Returns an untrained model whose weights depend on size and seed alone."""
    with torch.random.fork_rng(devices=[]):  # its own initialisation draws globally
        model = LlamaForCausalLM(llama_config(size, VOCABULARY_SIZE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                continue  # norms start at one
            noise = torch.randn(parameter.shape, generator=generator(seed, "init", name))
            deviation = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= math.sqrt(2 * size.layers)
            parameter.copy_(noise * deviation)
    return model


def train(
    model: LlamaForCausalLM,
    streams: Mapping[str, Stream],
    schedule: Schedule,
    *,
    seed: int,
    label: str,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Trains the model in place, on an equal share of every stream.

    Args:
        streams: domain -> text.
        seed: with `label` it seeds the order of the text.
        on_step: called after each step with its loss in nats per token.
    """
    draw = generator(seed, "train", label)
    length = model.config.max_position_embeddings

    def batches() -> Iterator[Tensor]:
        for step in range(schedule.steps):
            counts = shares_of(schedule.batch, len(streams), step)
            dealt = zip(streams.values(), counts, strict=True)
            yield torch.cat([stream.windows(count, length, draw) for stream, count in dealt])

    def loss_of(tokens: Tensor) -> Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.99))
    train_on(
        model,
        batches(),
        gradient_of(loss_of),
        clipped_step(model, optimizer, 1.0),
        optimizer,
        rate_at=schedule.rate_at,
        dropout=stable_seed(seed, "dropout", label),
        on_step=on_step,
    )


def shares_of(batch: int, streams: int, step: int) -> list[int]:
    """Returns how many windows each stream gives; the remainder goes round."""
    return [
        batch // streams + ((number - step) % streams < batch % streams)
        for number in range(streams)
    ]
