"""Classifiers that share one encoder: taken apart for merging, put together for scoring."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from merging.checkpoints.checkpoint import Checkpoint
from merging.weights import LazyWeights


class EncoderWeights(LazyWeights):
    """A classifier's tensors without its head, by the encoder's own names (no ``bert.``)."""

    def __init__(self, expert: Checkpoint) -> None:
        prefix = expert.prefix
        super().__init__(n.removeprefix(prefix) for n in expert if n.startswith(prefix))
        self._expert = expert

    def _tensor(self, name: str) -> Tensor:
        return self._expert[self._expert.prefix + name]


def assemble(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, nn.Module]:
    """Returns expert name -> its classification model around the base's encoder, one for all."""
    if not experts:
        return {}
    shared = base.module(dtype=dtype, device=device)
    models: dict[str, nn.Module] = {}
    for name, expert in experts.items():
        model = expert.module(dtype=dtype, device=device)
        attribute = expert.prefix.removesuffix(".")
        setattr(model, attribute, _with_own_parts(shared, getattr(model, attribute)))
        models[name] = model
    return models


def _with_own_parts(shared: nn.Module, own: nn.Module) -> nn.Module:
    """Returns `shared`; where it lacks a child that `own` has, a shell around both.

    The shell holds the very modules of `shared`, so what is written there is seen here.
    """
    held = dict(own.named_children())
    lacking = {
        name: held[name]
        for name, child in shared._modules.items()
        if child is None and name in held
    }
    if not lacking:
        return shared
    shell = copy.copy(shared)
    shell._modules = {**shared._modules, **lacking}
    return shell
