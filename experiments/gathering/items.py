"""What a model reads while statistics are gathered: the evaluators' requests, never padded."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.batching import pack
from evaluators.engine.cached_rows import kept_logits
from evaluators.engine.resident import Resident
from evaluators.requests import (
    Classify,
    EvaluationError,
    Loglikelihood,
    Match,
    Request,
    TokenStatistics,
)

_ELEMENTS_PER_TOKEN = 3 * 16 * 16  # as the engine counts images


@dataclass(frozen=True, eq=False)
class Item:
    """One input of a model, and which of its predictions have a likelihood.

    Args:
        inputs: what the forward takes, without batch dimension, on the CPU.
        scored: how many of the last tokens predict something that an evaluator scores; 0 for
            inputs that a head classifies.
    """

    inputs: Mapping[str, Tensor]
    scored: int = 0

    @property
    def tokens(self) -> int:
        """Number of its tokens; 0 for an image."""
        return len(self.inputs["input_ids"]) if "input_ids" in self.inputs else 0

    @property
    def cost(self) -> int:
        """Its size in a batch, in tokens; an image costs about what its patches cost."""
        sizes = [-(-tensor.numel() // _ELEMENTS_PER_TOKEN) for tensor in self.inputs.values()]
        return self.tokens or max(sizes)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What items must have in common to share a batch."""
        return tuple(sorted((name, tuple(tensor.shape)) for name, tensor in self.inputs.items()))

    @property
    def digest(self) -> str:
        """Digest of its content, equal on every machine."""
        content = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.inputs.items()):
            content.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            content.update(tensor.contiguous().numpy().tobytes())
        content.update(str(self.scored).encode())
        return content.hexdigest()


def items_of(requests: Sequence[Request], max_length: int) -> list[Item]:
    """Returns the inputs of `requests`, cut and shared as the engine's jobs do.

    Log-likelihoods: what the model reads, once for requests that read the same. Generation: the
    prompt, of which the first new token is scored. Token statistics: the text. Classification:
    the item, whoever's head asks.
    """
    rows: dict[tuple[int, ...], int] = {}  # tokens -> scored
    items: list[Item] = []
    for request in requests:
        if isinstance(request, Classify):
            items.append(Item(request.inputs))
        elif isinstance(request, Match) or getattr(request, "media", None) is not None:
            raise ValueError(
                "statistics are gathered of texts to predict and of inputs to classify, not of "
                "embeddings, images or sounds: choose other tasks for gather_on"
            )
        elif isinstance(request, Loglikelihood):
            row = (request.context + request.continuation)[-(max_length + 1) :][:-1]
            rows[row] = max(rows.get(row, 0), len(request.continuation))
        elif isinstance(request, TokenStatistics):
            row = request.tokens[: max_length + 1][:-1]
            rows[row] = max(rows.get(row, 0), len(row))
        else:
            row = request.prompt[-max(1, max_length - request.max_new_tokens) :]
            rows[row] = max(rows.get(row, 0), 1)
    items += [Item({"input_ids": torch.tensor(row)}, scored) for row, scored in rows.items()]
    return items


def digest_of(items: Sequence[Item]) -> str:
    """Returns a digest of the content of `items`, in order."""
    content = hashlib.blake2b(digest_size=16)
    for item in items:
        content.update(item.digest.encode())
    return content.hexdigest()


def batches_of(items: Sequence[Item], batch_tokens: int) -> list[list[Item]]:
    """Returns `items` in batches of equal shapes, the longest first.

    Nothing is padded: a layer may see tokens in any arrangement (routed, pooled, patched), so no
    mask could tell afterwards which of its rows were real.
    """
    groups: dict[tuple[Any, ...], list[Item]] = {}
    for item in sorted(items, key=lambda item: (-item.cost, item.shapes)):
        groups.setdefault(item.shapes, []).append(item)
    return [
        batch
        for group in groups.values()
        for batch in pack(group, [item.cost for item in group], batch_tokens)
    ]


def logits_of(
    resident: Resident, head: str, items: Sequence[Item], *, scored: bool = True
) -> Tensor:
    """Returns ``(items, classes)`` or ``(tokens, vocabulary)`` logits of one forward pass.

    Hooks and gradients stay as they are.

    Args:
        head: the expert's name, whose classification head answers where it has one.
        scored: give the logits of scored tokens; False: of one token only, where nothing but the
            pass itself is wanted.
    """
    inputs = {
        name: _stacked([item.inputs[name] for item in items], resident) for name in items[0].inputs
    }
    if "input_ids" in inputs and "attention_mask" not in inputs and resident.classifiers:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if resident.info.encoder_decoder:
        raise EvaluationError(
            "statistics are gathered of models without a decoder behind an encoder: choose a "
            "method that gathers none"
        )
    if resident.classifiers:
        kind = resident.info.head_kinds[head]
        if scored and kind != "inputs":
            raise EvaluationError(
                f"the head of expert {head!r} classifies {kind}, and only that of whole inputs "
                "has one likelihood for each item: choose a method that gathers none"
            )
        logits: Tensor = resident.classifiers[head](**inputs)[0]
        return logits
    width = inputs["input_ids"].shape[1]
    positions = [
        row * width + column
        for row, item in enumerate(items)
        for column in range(width - item.scored, width)
    ]
    wanted = torch.tensor(positions if scored else [0], device=resident.device)
    return kept_logits(resident.module, wanted, use_cache=False, **inputs)[0]


def pads(resident: Resident, head: str) -> bool:
    """Whether the model takes several items at once: a decoder's head must find their ends."""
    classifier = resident.classifiers.get(head)
    if classifier is None or resident.info.tokenizer is None:
        return True
    return getattr(classifier.config, "pad_token_id", None) is not None


@contextmanager
def tracked(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Switches gradients on for `parameters`, and off again."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _stacked(tensors: Sequence[Tensor], resident: Resident) -> Tensor:
    batch = torch.stack(list(tensors)).to(resident.device)
    return batch.to(resident.dtype) if batch.is_floating_point() else batch
