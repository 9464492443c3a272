"""Gradients of the loss on labelled public examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluators.engine.resident import Resident
from evaluators.items import TaskItem
from evaluators.panel import Panel
from evaluators.requests import (
    Classify,
    EvaluationError,
    Generate,
    Match,
    Request,
    TokenStatistics,
)
from experiments.gathering.items import Item, logits_of, tracked


@dataclass(frozen=True, eq=False)
class Example:
    """An input and what the model should answer.

    Args:
        answer: the class ``(1,)``, or the next token after each of the scored ones ``(scored,)``.
    """

    item: Item
    answer: Tensor


def examples_of(panel: Panel, max_length: int) -> list[Example]:
    """Returns the examples of a panel's items, cut as the engine cuts them.

    A choice among answers is the right one's text; what is generated has no loss.

    Raises:
        ValueError: a task generates; names it.
    """
    return [
        _example(task, item, request, max_length)
        for task, evaluator in panel.evaluators.items()
        for item in evaluator.items
        for request in _asked(item)
    ]


def gather_gradients(
    resident: Resident,
    module: nn.Module,
    head: str,
    examples: Sequence[Example],
    *,
    correct_only: bool,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """Returns parameter of `module` to the gradient of the loss, summed over `examples`.

    The loss is the negative log-likelihood of the answers. Where no gradient reaches it is
    exactly zero.

    Args:
        module: what `resident` answers with: a classifier with its head, or the model itself.
        correct_only: leave out examples that are classified wrongly.

    Returns:
        ``(*shape)`` float32 on the model's device.

    Raises:
        EvaluationError: a loss is not finite, or no example is left.
    """
    parameters = dict(module.named_parameters())
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    used = 0
    with tracked(list(parameters.values())):
        for example in examples:
            logits = logits_of(resident, head, [example.item]).float()
            answer = example.answer.to(logits.device)
            advance(1)
            if correct_only and not bool((logits.argmax(-1) == answer).all()):
                continue
            used += 1
            loss = nn.functional.cross_entropy(logits, answer, reduction="sum")
            if not bool(loss.isfinite()):
                raise EvaluationError("the loss is not finite: leave out items that overflow")
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient
    if not used:
        raise EvaluationError(
            "no example is answered rightly, so that there is no gradient: set "
            "saliency.correct_only=false"
        )
    return sums


def _asked(item: TaskItem[object]) -> Iterator[Request]:
    right = getattr(item.target, "label", None)
    yield from item.requests if right is None else [item.requests[right]]


def _example(task: str, item: TaskItem[object], request: Request, max_length: int) -> Example:
    if isinstance(request, Classify):
        if request.positions is not None:
            raise ValueError(
                f"task {task!r} classifies tokens, whose loss is not known here: choose another "
                "task"
            )
        return Example(Item(request.inputs), torch.tensor([item.target]))
    if isinstance(request, Generate | Match) or getattr(request, "media", None) is not None:
        raise ValueError(
            f"task {task!r} generates text, compares embeddings or reads images or sounds, whose "
            "loss is not known here: choose another task"
        )
    if isinstance(request, TokenStatistics):
        row, scored = request.tokens[: max_length + 1], len(request.tokens) - 1
    else:
        row = (request.context + request.continuation)[-(max_length + 1) :]
        scored = len(request.continuation)
    scored = min(scored, len(row) - 1)
    inputs: Mapping[str, Tensor] = {"input_ids": torch.tensor(row[:-1])}
    return Example(Item(inputs, scored), torch.tensor(row[-scored:]))
