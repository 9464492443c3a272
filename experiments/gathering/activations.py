"""Norms of the inputs of every layer, added up while items pass through."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evaluators.engine.resident import Resident
from experiments.gathering.items import Item, logits_of


def gather_input_norms(
    resident: Resident,
    module: nn.Module,
    head: str,
    items: Sequence[Item],
    *,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """Returns weight of `module` to ``||x_j||_2``, the norm of input j over all items' positions.

    Known for linear layers, convolutions (per channel) and embeddings, whose input is one-hot: a
    token's norm is the root of its count. A weight that several layers share has the inputs of
    all.

    Returns:
        Float32 on the model's device, of a shape that broadcasts to the weight's.

    Source: Sun et al. 2023, A simple and effective pruning approach for large language models
    (Wanda), arXiv:2306.11695, equation 1.
    """
    squares: dict[str, Tensor] = {}
    with torch.no_grad(), _watched(module, squares):
        for item in items:
            logits_of(resident, head, [item], scored=False)
            advance(1)
    return {name: square.sqrt().float() for name, square in squares.items()}


@contextmanager
def _watched(module: nn.Module, squares: dict[str, Tensor]) -> Iterator[None]:
    """Adds the squares of every layer's inputs to `squares`."""
    names = {id(weight): name for name, weight in module.named_parameters()}

    def watch(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            given: Tensor = arguments[0] if arguments else next(iter(options.values()))
            squares[name] = squares.get(name, torch.zeros(())) + _squares(layer, given)

        return add

    handles = [
        layer.register_forward_pre_hook(watch(names[id(layer.weight)]), with_kwargs=True)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | Conv1D | nn.Embedding | nn.Conv2d)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _squares(layer: nn.Module, given: Tensor) -> Tensor:
    """Returns ``sum_t x_tj^2`` in a shape that broadcasts to the layer's weight."""
    if isinstance(layer, nn.Embedding):
        return torch.bincount(given.flatten(), minlength=layer.num_embeddings).double()[:, None]
    given = given.double()
    if isinstance(layer, nn.Conv2d):
        channels = (given**2).sum(dim=(0, 2, 3))
        return channels.reshape(layer.groups, -1).mean(0)[None, :, None, None]
    columns = (given.reshape(-1, given.shape[-1]) ** 2).sum(0)
    return columns[:, None] if isinstance(layer, Conv1D) else columns[None, :]
