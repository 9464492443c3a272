"""Gradient training of one expert: a LoRA adapter that learns the answers of examples."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evaluators.tasks.encoding import encode_pair, prefix_token
from experiments.experts.sentences.training import batches_of
from experiments.experts.smollm.tasks import PromptedAnswer
from experiments.experts.training.loop import (
    Schedule,
    adamw,
    clipped_step,
    gradient_of,
    train_on,
)
from merging.seeding import stable_seed

Encoded: TypeAlias = tuple[tuple[int, ...], int]
"""Tokens, and from which one on they are learnt."""


def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[PromptedAnswer],
    schedule: Schedule,
    *,
    seed: int,
    label: str,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Trains an adapter in place, where it lies, and leaves it in evaluation mode.

    Args:
        model: a causal language model of transformers in peft's wrapper.
        seed: with `label` it seeds the order of the examples and the dropout.
        on_step: called after each step with its loss in nats per learnt token.
    """
    encoded = [encode(tokenizer, example) for example in examples]
    optimizer = adamw(model, weight_decay=0.0, fused=True)
    train_on(
        model,
        batches_of([len(tokens) for tokens, _ in encoded], schedule, seed, label),
        gradient_of(lambda batch: answer_loss(model, [encoded[item] for item in batch])),
        clipped_step(model, optimizer, 1.0),
        optimizer,
        rate_at=schedule.rate_at,
        dropout=stable_seed(seed, "dropout", label),
        on_step=on_step,
    )


def encode(tokenizer: Any, example: PromptedAnswer) -> Encoded:
    """Returns an example's tokens as lm-eval will show them: a text behind the start token."""
    if not example.prompt:
        body = tokenizer.encode(example.answer, add_special_tokens=False)
        return (prefix_token(tokenizer), *body), 1
    pair = encode_pair(tokenizer, example.prompt, example.answer)
    return (*pair.context, *pair.continuation), len(pair.context)


def answer_loss(model: Any, batch: Sequence[Encoded]) -> Tensor:
    """Returns the mean cross-entropy of the learnt tokens, each example counting alike, in nats.

    Padding stands right, where a left-to-right model cannot see it from any learnt token; the
    vocabulary's logits are made for these alone.
    """
    device = next(model.parameters()).device
    width = max(len(tokens) for tokens, _ in batch) - 1
    inputs = torch.zeros((len(batch), width), dtype=torch.int64)
    places: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    for row, (tokens, start) in enumerate(batch):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        places += [row * width + place for place in range(start - 1, len(tokens) - 1)]
        targets += tokens[start:]
        shares += [1 / (len(batch) * (len(tokens) - start))] * (len(tokens) - start)
    inner = model.get_base_model()
    states = inner.get_decoder()(input_ids=inputs.to(device), use_cache=False).last_hidden_state
    learnt = states.flatten(0, 1)[torch.tensor(places, device=device)]
    logits = inner.get_output_embeddings()(learnt).float()
    losses = cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")
    return (losses * torch.tensor(shares, device=device)).sum()
