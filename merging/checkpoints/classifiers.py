"""Classifiers that share one encoder: taken apart for merging, put together for scoring."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from merging.checkpoints.checkpoint import Checkpoint
from merging.weights import Weights


def encoder_of(expert: Checkpoint) -> Weights:
    """Returns a classifier's tensors without its head, by the encoder's own names."""
    return _Encoder(expert)


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
        own = getattr(model, expert.prefix.removesuffix("."))
        setattr(model, expert.prefix.removesuffix("."), _with_own_parts(shared, own))
        models[name] = model
    return models


class _Encoder(Mapping[str, Tensor]):
    """Names without the prefix, for example ``bert.``; tensors read on access."""

    def __init__(self, expert: Checkpoint) -> None:
        self._expert = expert

    def __getitem__(self, name: str) -> Tensor:
        return self._expert[self._expert.prefix + name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._expert.prefix + name in self._expert

    def __iter__(self) -> Iterator[str]:
        prefix = self._expert.prefix
        return (name.removeprefix(prefix) for name in self._expert if name.startswith(prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


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
