"""The vendor: receives privatised states and labels, trains what lies behind them, answers."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.experts.sentences.training import batches_of, sentence_schedule
from experiments.experts.split.adapter import (
    adapted,
    lora_config,
    open_classifier,
    save_expert,
    trained_tensors,
)
from experiments.experts.split.halves import split
from experiments.experts.split.states import StateFolder, padded
from experiments.experts.training.language_model import Lora
from experiments.experts.training.loop import (
    Schedule,
    adamw,
    clipped_step,
    gradient_of,
    train_on,
)
from experiments.runs.cache import digest_of
from merging.checkpoints.checkpoint import Checkpoint
from merging.privacy.ledger import Ledger
from merging.saving.save import staged, write_ledger
from merging.seeding import stable_seed

_CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class VendorSettings:
    """What is trained on the states, and how.

    Args:
        lora: no targets: every linear layer behind the split.
        seed: of head, adapter, order of the examples and dropout.
        checkpoint_steps: steps after which a killed training goes on at most so far behind.
    """

    schedule: Schedule = field(default_factory=sentence_schedule)
    lora: Lora = field(default_factory=lambda: Lora(targets=()))
    seed: int = 0
    label: str = "split"
    checkpoint_steps: int = 25


class Vendor:
    """The top of a model, and what it was sent.

    Args:
        base: checkpoint of the whole model.
        blocks: of the bottom.
        classes: that labels count.
        folder: where states and checkpoints lie, so that a killed vendor goes on.
        identity: JSON values that tell what is sent to this folder from what is sent to others.
        device: of the training; bits are equal on one kind of device.

    Raises:
        ValueError: the model cannot be split there, or the folder holds something else.
    """

    def __init__(
        self,
        base: Checkpoint,
        blocks: int,
        classes: int,
        settings: VendorSettings,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.base, self.classes, self.settings = base, classes, settings
        self._device = torch.device(device)
        whole = self._classifier()
        bottom, self.top = split(whole, blocks)
        self.width = bottom.width
        self._config = lora_config(whole, blocks, settings.lora)
        self.top.model = adapted(self.top.model, self._config, seed=settings.seed)
        self.top.to(device).train(False)
        named = {"base": base.sha256, "blocks": blocks, "classes": classes, **identity}
        self.received = StateFolder(folder / "states", named)
        self._checkpoint = folder / _CHECKPOINT
        self._identity = digest_of([named, settings], [])
        self.losses: list[float] = []

    def train(self, on_step: Callable[[int], None] = lambda steps: None) -> None:
        """Trains adapter and head on all that was received; goes on behind the last checkpoint.

        Args:
            on_step: called with the number of steps done: first those of an earlier start, then
                after each.

        Raises:
            ValueError: the checkpoint is of other settings.
        """
        batches = list(self.received.batches())
        states = [each for batch in batches for each in batch.apart()]
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
        settings, schedule = self.settings, self.settings.schedule
        optimizer = adamw(self.top, weight_decay=0.01, fused=True)
        done = self._resume(optimizer)
        on_step(done)
        lengths = [len(each) for each in states]
        order = list(enumerate(batches_of(lengths, schedule, settings.seed, settings.label)))

        def loss_of(step: tuple[int, tuple[int, ...]]) -> Tensor:
            number, items = step
            # By step, so that the dropout behind a checkpoint is what it would have been.
            torch.manual_seed(stable_seed(settings.seed, "dropout", settings.label, number))
            logits = self._logits([states[item] for item in items])
            return cross_entropy(logits, labels[list(items)].to(logits.device))

        def count(loss: float) -> None:
            self.losses.append(loss)
            steps = len(self.losses)
            if steps % settings.checkpoint_steps == 0 or steps == schedule.steps:
                self._keep(optimizer)
            on_step(steps)

        train_on(
            self.top,
            order[done:],
            gradient_of(loss_of),
            clipped_step(self.top, optimizer, 1.0),
            optimizer,
            rate_at=lambda step: schedule.rate_at(done + step),
            dropout=0,  # see loss_of
            on_step=count,
        )

    def answer(self, states: Sequence[Tensor]) -> Tensor:
        """Returns ``(examples, classes)`` logits of ``(T, d)`` states each."""
        with torch.no_grad():
            return self._logits(states).cpu()

    def save(self, out: Path, ledger: Ledger) -> None:
        """Writes the expert to `out`, at once or not at all; one that is there is kept.

        Args:
            ledger: of what went into it, for the ``privacy.json`` beside its weights.
        """
        if out.exists():
            return
        with staged(out) as draft:
            trained = {name: p.detach().cpu() for name, p in self._trained().items()}
            save_expert(self._classifier(), self.base.path, trained, self._config, draft)
            for directory in (draft, draft / "adapter"):
                write_ledger(directory, ledger)

    def _logits(self, states: Sequence[Tensor]) -> Tensor:
        rows, mask = padded(states)
        logits: Tensor = self.top(rows.to(self._device), mask.to(self._device))
        return logits

    def _classifier(self) -> Any:
        settings = self.settings
        path = self.base.path
        return open_classifier(path, self.classes, seed=settings.seed, label=settings.label)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return trained_tensors(self.top.model)

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        draft = self._checkpoint.with_suffix(".tmp")
        content = {
            "identity": self._identity,
            "losses": self.losses,
            "trained": {name: p.detach().cpu() for name, p in self._trained().items()},
            "optimizer": optimizer.state_dict(),
        }
        torch.save(content, draft)
        os.replace(draft, self._checkpoint)

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        """Returns the steps that are done."""
        if not self._checkpoint.is_file():
            return 0
        content = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        if content["identity"] != self._identity:
            raise ValueError(
                f"{self._checkpoint} is of a training with other settings or states: name another "
                "folder, or give the settings that it was begun with"
            )
        optimizer.load_state_dict(content["optimizer"])
        with torch.no_grad():
            for name, parameter in self._trained().items():
                parameter.copy_(content["trained"][name])
        self.losses = list(content["losses"])
        return len(self.losses)
