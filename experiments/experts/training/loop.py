"""The training loop of all experts: AdamW on batches, its learning rate set before every step."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """Steps of a training and their learning rates: a linear warm-up, then a fall.

    Args:
        batch: items per step.
        learning_rate: the highest.
        final: share of it that a cosine ends at.
        warmup: share of the steps until the highest rate.
        fall: along half a cosine down to `final`, or along a line to zero.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 3e-3
    final: float = 0.1
    warmup: float = 0.05
    fall: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        for option in ("steps", "batch"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option}={getattr(self, option)}: it must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate}: it must be above 0 and finite")

    def rate_at(self, step: int) -> float:
        """Returns the learning rate of a step; steps count from 0."""
        peak, rising = self.learning_rate, max(1, round(self.warmup * self.steps))
        if self.fall == "cosine" or step < rising:
            return cosine_rate(step, self.steps, peak=peak, final=self.final, rising=rising)
        return peak * (self.steps - step) / max(1, self.steps - rising)  # peak (T - t) / (T - w)


def train_on(
    model: nn.Module,
    batches: Iterable[Batch],
    backward: Callable[[Batch], float],
    step: Callable[[], None],
    optimizer: torch.optim.Optimizer,
    *,
    rate_at: Callable[[int], float],
    dropout: int,
    on_step: Callable[[float], None],
) -> None:
    """Trains the model in place, where it lies, and leaves it in evaluation mode.

    Args:
        backward: leaves the gradients of a batch; returns its loss.
        step: moves the parameters along them and forgets them.
        rate_at: learning rate of a step; steps count from 0.
        dropout: its seed; torch's global generators are as before afterwards.
    """
    device = next(model.parameters()).device
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(dropout)
        for number, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(number)
            loss = backward(batch)
            step()
            on_step(loss)
    model.train(False)


def gradient_of(loss_of: Callable[[Batch], torch.Tensor]) -> Callable[[Batch], float]:
    """Returns what leaves the gradients of a batch's scalar loss, and returns that loss."""

    def backward(batch: Batch) -> float:
        loss = loss_of(batch)
        torch.autograd.backward(loss)
        return loss.item()

    return backward


def clipped_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: float | None
) -> Callable[[], None]:
    """Returns the step along the gradient, its norm over all parameters at most `clip`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)  # g <- g min(1, clip / ||g||)
        optimizer.step()
        optimizer.zero_grad()

    return step


def adamw(model: nn.Module, *, weight_decay: float, **options: Any) -> torch.optim.AdamW:
    """Returns AdamW over all that requires a gradient; matrices decay, vectors do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], **options)


def cosine_rate(step: int, steps: int, *, peak: float, final: float, rising: int) -> float:
    """Returns the learning rate of a step: a linear warm-up, then half a cosine.

    Args:
        peak: the highest rate.
        final: share of `peak` at the end.
        rising: steps of the warm-up, w.
    """
    if step < rising:
        return peak * (step + 1) / rising  # peak (t + 1) / w
    progress = (step - rising) / max(1, steps - rising)  # p = (t - w) / (T - w)
    # peak (final + (1 - final) (1 + cos(pi p)) / 2)
    return peak * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)
