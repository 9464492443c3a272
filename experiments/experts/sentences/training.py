"""Gradient training of one expert: an encoder with a new head, all parameters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from experiments.experts.sentences.sentences import Sentence
from experiments.experts.training.loop import (
    Schedule,
    adamw,
    clipped_step,
    gradient_of,
    train_on,
)
from experiments.experts.training.train import RecordLosses
from merging.seeding import generator, stable_seed

Encoded: TypeAlias = Mapping[str, list[int]]

_SORTED_TOGETHER = 16  # batches


def sentence_schedule(
    steps: int = 200, batch: int = 16, learning_rate: float = 1e-4, warmup: float = 0.06
) -> Schedule:
    """Returns a schedule whose learning rate falls along a line to zero."""
    return Schedule(steps, batch, learning_rate, warmup=warmup, fall="linear")


def new_classifier(base: Path, classes: int, *, seed: int, label: str) -> PreTrainedModel:
    """Returns the encoder of `base` with a new head, which depends on seed and label alone."""
    with torch.random.fork_rng(devices=[]):  # its own initialisation draws globally
        torch.manual_seed(stable_seed(seed, "head", label))
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=classes, dtype=torch.float32
        )
    return model


def train(
    model: PreTrainedModel,
    tokenizer: Any,
    sentences: Sequence[Sentence],
    schedule: Schedule,
    *,
    seed: int,
    label: str,
    on_step: Callable[[float], None] = lambda loss: None,
) -> None:
    """Trains the classifier in place, where it lies, and leaves it in evaluation mode.

    Args:
        model: float32, on any device.
        tokenizer: of its base, with a padding token.
        seed: with `label` it seeds the order of the sentences and the dropout.
        on_step: called after each step with its loss in nats per sentence.
    """
    encoded = encode(model, tokenizer, sentences)
    losses_of = sentence_losses(tokenizer, encoded, [s.label for s in sentences])
    # Fused: the embeddings are half of the model; on a CPU it saves a fifth of the time.
    optimizer = adamw(model, weight_decay=0.01, fused=True)
    lengths = [len(tokens["input_ids"]) for tokens in encoded]
    train_on(
        model,
        batches_of(lengths, schedule, seed, label),
        gradient_of(lambda batch: losses_of(model, batch)[0].mean()),
        clipped_step(model, optimizer, 1.0),
        optimizer,
        rate_at=schedule.rate_at,
        dropout=stable_seed(seed, "dropout", label),
        on_step=on_step,
    )


def encode(model: PreTrainedModel, tokenizer: Any, sentences: Sequence[Sentence]) -> list[Encoded]:
    """Returns the tokens of each sentence, cut off where the model ends."""
    length = min(tokenizer.model_max_length, _positions(model))
    return [tokenizer(each.text, truncation=True, max_length=length) for each in sentences]


def sentence_losses(
    tokenizer: Any, encoded: Sequence[Encoded], labels: Sequence[int], *, positions: bool = False
) -> RecordLosses:
    """Returns what gives the cross-entropies of sentences, by number, in nats.

    Args:
        positions: hand over those of every sentence, from 0, which BERT would make once for the
            lot: then its table of positions has a gradient for each sentence.
    """
    targets = torch.tensor(labels)

    def losses_of(model: nn.Module, part: Sequence[int]) -> tuple[Tensor, Tensor]:
        device = next(model.parameters()).device
        inputs = tokenizer.pad([encoded[item] for item in part], return_tensors="pt").to(device)
        rows, width = inputs["input_ids"].shape
        if positions:
            inputs["position_ids"] = torch.arange(width, device=device).repeat(rows, 1)
        logits = model(**inputs).logits
        losses = cross_entropy(logits, targets[list(part)].to(device), reduction="none")
        return losses, torch.ones(rows, dtype=torch.int64, device=device)

    return losses_of


def batches_of(
    lengths: Sequence[int], schedule: Schedule, seed: int, label: str
) -> Iterator[tuple[int, ...]]:
    """Yields the items of every step: each item once before any comes again.

    Items are drawn at random; those of `_SORTED_TOGETHER` consecutive batches are dealt by length,
    so that a batch holds little padding, and the batches follow each other at random.
    """
    draw = generator(seed, "order", label)
    needed = schedule.steps * schedule.batch
    rounds = -(-needed // len(lengths))
    order = torch.cat([torch.randperm(len(lengths), generator=draw) for _ in range(rounds)])
    drawn = order[:needed].tolist()
    chunk = _SORTED_TOGETHER * schedule.batch
    for start in range(0, needed, chunk):
        near = sorted(drawn[start : start + chunk], key=lambda item: lengths[item])
        batches = [near[i : i + schedule.batch] for i in range(0, len(near), schedule.batch)]
        for number in torch.randperm(len(batches), generator=draw).tolist():
            yield tuple(batches[number])


def _positions(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "max_position_embeddings", 512))
