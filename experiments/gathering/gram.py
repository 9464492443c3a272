"""Gram matrices of the inputs of every linear layer, added up while batches pass through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evaluators.engine.resident import Resident
from experiments.gathering.items import Item, logits_of


@dataclass(frozen=True, eq=False)
class LinearLayers:
    """The linear layers of a model, by the parameter that is their weight.

    Args:
        modules: parameter to the layers that use it: several where layers share their weight.
        transposed: parameters that are stored as (in, out), as GPT-2 does.
        averaged: the other parameters.
    """

    modules: Mapping[str, tuple[nn.Module, ...]]
    transposed: tuple[str, ...]
    averaged: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, names: Sequence[str]) -> LinearLayers:
        """Returns the layers of `module` whose weights are among `names`.

        A weight that something else reads too (an output layer tied to the embedding) is no
        linear layer's own, so it is averaged.
        """
        names_of = {id(parameter): name for name, parameter in module.named_parameters()}
        users: dict[str, list[tuple[nn.Module, str]]] = {}
        for user in module.modules():
            for key, parameter in user.named_parameters(recurse=False):
                users.setdefault(names_of[id(parameter)], []).append((user, key))
        linear = {
            name: tuple(user for user, _ in users[name])
            for name in names
            if name in users and all(_reads_linearly(*user) for user in users[name])
        }
        return cls(
            linear,
            tuple(name for name, used in linear.items() if isinstance(used[0], Conv1D)),
            tuple(name for name in names if name not in linear),
        )

    def width(self, name: str) -> int:
        """Returns the number of inputs of the layers with this weight."""
        weight: Any = self.modules[name][0].weight
        return int(weight.shape[0] if name in self.transposed else weight.shape[1])


def gather_gram(
    resident: Resident,
    head: str,
    batches: Sequence[Sequence[Item]],
    layers: LinearLayers,
    *,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """Returns parameter to the mean of ``x x^T`` over the inputs x of its layer.

    Products and sums are float64: the rounding of a float32 sum would grow with the data, and the
    solution that needs G squares its condition. No input outlives its layer's call; the memory is
    one ``(in, in)`` float64 matrix per linear layer. A layer that no data reaches has zeros.

    Args:
        batches: see `batches_of`; every position of theirs counts.
        advance: called with the number of items after each batch.

    Returns:
        ``(in, in)`` float32, CPU.
    """
    exact = torch.float32 if resident.device.type == "mps" else torch.float64
    sums = {
        name: torch.zeros((layers.width(name),) * 2, dtype=exact, device=resident.device)
        for name in layers.modules
    }
    counts = dict.fromkeys(sums, 0)
    with torch.no_grad(), _summed(layers, sums, counts):
        for batch in batches:
            logits_of(resident, head, batch, scored=False)
            advance(len(batch))
    # G / n, n the inputs that were added
    return {name: (sums.pop(name) / max(1, counts[name])).float().cpu() for name in counts}


def _reads_linearly(user: nn.Module, key: str) -> bool:
    return isinstance(user, nn.Linear | Conv1D) and key == "weight"


@contextmanager
def _summed(
    layers: LinearLayers, sums: Mapping[str, Tensor], counts: dict[str, int]
) -> Iterator[None]:
    """Adds every layer's inputs to `sums`, and how many there were to `counts`."""

    def watch(name: str) -> Callable[..., None]:
        def add(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            given: Tensor = arguments[0] if arguments else next(iter(options.values()))
            rows = given.reshape(-1, given.shape[-1]).to(sums[name].dtype)
            sums[name].addmm_(rows.T, rows)  # G <- G + sum_t x_t x_t^T
            counts[name] += len(rows)

        return add

    handles = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, modules in layers.modules.items()
        for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
