"""Records as token sequences: encoded once, padded in lots, one loss for each."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from evaluators.tasks.encoding import prefix_token
from experiments.experts.training.regime import Reduction

Record: TypeAlias = tuple[int, ...]

_IGNORED = -100


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[Record]:
    """Returns the tokens of each text behind the start token and in front of the end token.

    Every token behind the first is learnt. What does not fit into `max_length`, the start token
    included, is cut off.
    """
    start, end = prefix_token(tokenizer), tokenizer.eos_token_id
    closing = () if end is None else (int(end),)
    bodies = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [(start, *body, *closing)[:max_length] for body in bodies]


def padded(records: Sequence[Record], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets, ``(records, longest - 1)`` int64; padding is no target.

    Padding stands right, where a left-to-right model cannot see it from any target.
    """
    width = max(1, max(len(record) for record in records) - 1)
    inputs = torch.zeros((len(records), width), dtype=torch.int64)
    targets = torch.full((len(records), width), _IGNORED, dtype=torch.int64)
    for row, record in enumerate(records):
        tokens = torch.tensor(record, dtype=torch.int64)
        inputs[row, : len(record) - 1] = tokens[:-1]
        targets[row, : len(record) - 1] = tokens[1:]
    return inputs.to(device), targets.to(device)


def record_losses(model: Any, inputs: Tensor, targets: Tensor, loss: Reduction) -> Tensor:
    """Returns ``(records,)`` losses in nats: the mean or the sum over each record's own tokens.

    Args:
        model: maps ``input_ids`` and ``position_ids`` to an output with ``logits``.
        inputs: ``(records, tokens)``, as `padded` gives them.
    """
    rows, width = inputs.shape
    # Given, or a table of positions has one gradient for the lot instead of one per record.
    positions = torch.arange(width, device=inputs.device).expand(rows, width)
    logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    tokens = cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=_IGNORED
    )
    totals = tokens.view(rows, width).sum(dim=1)
    return totals if loss == "sum" else totals / token_counts(targets).clamp(min=1)


def token_counts(targets: Tensor) -> Tensor:
    """Returns ``(records,)`` int64: how many tokens of each record are learnt."""
    return (targets != _IGNORED).sum(dim=1)
