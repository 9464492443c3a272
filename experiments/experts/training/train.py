"""The training of one expert on records, the same for every regime."""

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from experiments.experts.training.loop import adamw, clipped_step, train_on
from experiments.experts.training.records import Record, padded, record_losses, token_counts
from experiments.experts.training.regime import Regime, TrainingPrivacy
from merging.seeding import generator, secret_generator, stable_seed

RecordLosses: TypeAlias = Callable[[nn.Module, Sequence[int]], tuple[Tensor, Tensor]]
"""Numbers of records -> their ``(records,)`` losses, and ``(records,)`` int64 learnt tokens."""


@dataclass(frozen=True)
class Spent:
    """What a private training has cost.

    Args:
        noise_multiplier: standard deviation of the noise over the clip norm.
        sample_rate: probability of a record in one update.
        epsilon: as the accountant has it for correct clipping; infinity without noise.
    """

    noise_multiplier: float
    sample_rate: float
    epsilon: float


@dataclass(frozen=True)
class Trained:
    """What happened in a training.

    Args:
        updates: steps of the optimizer, with those of an empty lot.
        presentations: records shown, repeats counted.
        empty: updates whose lot had no record.
        losses: of each other update, the mean of its records' losses in nats.
    """

    updates: int
    presentations: int
    empty: int
    losses: tuple[float, ...]
    spent: Spent | None = None


def train(
    model: Any,
    records: Sequence[Record],
    regime: Regime,
    *,
    seed: int,
    label: str,
    on_update: Callable[[int], None] = lambda updates: None,
) -> Trained:
    """Trains a causal language model in place; see `train_on_losses`.

    Args:
        records: tokens of each, at least two.
    """
    device = next(model.parameters()).device

    def losses_of(trained: nn.Module, part: Sequence[int]) -> tuple[Tensor, Tensor]:
        inputs, targets = padded([records[number] for number in part], device)
        losses = record_losses(trained, inputs, targets, regime.loss)
        return losses, token_counts(targets)

    return train_on_losses(
        model, losses_of, len(records), regime, seed=seed, label=label, on_update=on_update
    )


def train_on_losses(
    model: Any,
    losses_of: RecordLosses,
    records: int,
    regime: Regime,
    *,
    seed: int,
    label: str,
    on_update: Callable[[int], None] = lambda updates: None,
) -> Trained:
    """Trains a model in place, where it lies, and leaves it in evaluation mode.

    What requires no gradient stays as it is. ValueError: the lot is larger than the number of
    records.

    Args:
        losses_of: called with the model, maybe wrapped, and the numbers of some records.
        records: how many there are, at least two.
        seed: with `label` it seeds lots, dropout and noise; not read where they are secret, see
            `TrainingPrivacy`.
        on_update: called after each update with the number of updates to come.
    """
    updates = regime.updates(records)
    device = next(model.parameters()).device
    secret = _secret(regime)
    root = seed if secret is None else secrets.randbits(256)
    optimizer = adamw(model, weight_decay=regime.weight_decay, lr=regime.learning_rate)
    rule: _PlainUpdate | _PrivateUpdate = _PlainUpdate(model, optimizer, regime)
    if regime.privacy is not None:
        noise = stable_seed(seed, "noise", label) if secret is None else None
        rule = _PrivateUpdate(optimizer, regime, regime.privacy, records, noise, device)
    losses: list[float] = []
    presentations: list[int] = []
    with rule.wrapping(model) as trained:

        def backward(lot: list[int]) -> float:
            parts = _parts(lot, regime.physical)
            total = sum(rule.backward(trained, losses_of, part, len(lot)) for part in parts)
            presentations.append(len(lot))
            return total / len(lot) if lot else math.nan

        def count(loss: float) -> None:
            if presentations[-1]:
                losses.append(loss)
            on_update(updates - len(presentations))

        train_on(
            model,
            lots(regime, records, seed=seed, label=label, secret=secret),
            backward,
            rule.step,
            optimizer,
            rate_at=lambda update: regime.rate_at(update, updates),
            dropout=stable_seed(root, "dropout", label),
            on_step=count,
        )
    empty = updates - len(losses)
    return Trained(updates, sum(presentations), empty, tuple(losses), rule.spent())


def lots(
    regime: Regime,
    records: int,
    *,
    seed: int,
    label: str,
    secret: np.random.Generator | None = None,
) -> Iterator[list[int]]:
    """Yields the records of every update, by number; a Poisson lot may be empty.

    `secret` draws Poisson lots instead of `seed` and `label`: what sampling saves holds while
    nobody knows them.
    """
    updates = regime.updates(records)
    draw = generator(seed, "lots", label)
    if regime.sampling == "poisson":
        for _ in range(updates):
            if secret is None:
                drawn = torch.rand(records, generator=draw, dtype=torch.float64)
            else:
                drawn = torch.from_numpy(secret.random(records))
            yield (drawn < regime.lot / records).nonzero().flatten().tolist()
        return
    queue: list[int] = []
    for _ in range(updates):
        while len(queue) < regime.lot:
            queue += torch.randperm(records, generator=draw).tolist()
        yield queue[: regime.lot]
        queue = queue[regime.lot :]


class _PlainUpdate:
    """Moves along the gradient of a lot's mean loss, clipped as a whole."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, regime: Regime) -> None:
        self.step = clipped_step(model, optimizer, regime.clip)
        self.wrapping = nullcontext

    def backward(
        self, model: nn.Module, losses_of: RecordLosses, part: Sequence[int], lot: int
    ) -> float:
        """Leaves the gradients of a part of a lot; returns the sum of its records' losses."""
        losses, _ = losses_of(model, part)
        torch.autograd.backward(losses.sum() / lot)
        return float(losses.detach().sum())

    def spent(self) -> Spent | None:
        return None


class _PrivateUpdate:
    """Moves along the noised sum of the records' gradients, each clipped by itself."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        regime: Regime,
        privacy: TrainingPrivacy,
        records: int,
        seed: int | None,
        device: torch.device,
    ) -> None:
        from experiments.experts.training import private  # opacus: an extra, and slow to import

        self._rate = regime.lot / records
        self._noise = private.noise_for(privacy, self._rate, regime.updates(records))
        self._spend = private.TrainingSpend(privacy, self._noise, self._rate)
        self._optimizer = private.PrivateOptimizer(
            optimizer,
            privacy,
            noise_multiplier=self._noise,
            lot=regime.lot,
            seed=seed,
            device=device,
        )
        self.wrapping = private.per_record_gradients

    def backward(
        self, model: nn.Module, losses_of: RecordLosses, part: Sequence[int], lot: int
    ) -> float:
        """Adds the clipped gradients of a part of a lot; returns the sum of its losses."""
        losses, tokens = losses_of(model, part)
        torch.autograd.backward(losses.sum())
        self._optimizer.add(tokens)
        return float(losses.detach().sum())

    def step(self) -> None:
        self._optimizer.finish()
        self._spend.count()

    def spent(self) -> Spent | None:
        return Spent(self._noise, self._rate, self._spend.epsilon())


def _secret(regime: Regime) -> np.random.Generator | None:
    """Returns what draws the lots of a private training; None: its seed does."""
    if regime.privacy is None or regime.privacy.randomness == "seed":
        return None
    return secret_generator()


def _parts(lot: list[int], physical: int | None) -> Iterator[list[int]]:
    size = physical or max(1, len(lot))
    for start in range(0, len(lot), size):
        yield lot[start : start + size]
