"""The pool of handwritten digits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTForImageClassification

from experiments.experts.digits import digits
from experiments.experts.digits.digits import (
    handwritten,
    image_losses,
    new_transformer,
    train_on_printed,
    trainable_privately,
)
from experiments.experts.training.loop import Schedule
from experiments.papers.dedup.pools import DedupPool, Lesson, drawn_order
from merging.checkpoints.checkpoint import quiet_transformers


@dataclass(frozen=True, kw_only=True)
class DigitPool(DedupPool):
    """Experts for scikit-learn's digits; they start from a transformer that has read printed ones.

    Args:
        start: training on printed digits.
        printed: how many of them.
    """

    hidden: int = 96
    layers: int = 3
    start: Schedule = field(default_factory=lambda: Schedule(300, 64, 1e-3))
    printed: int = 3000

    @property
    def content(self) -> Any:
        """See `DedupPool`."""
        return ["scikit-learn digits", self.hidden, self.layers, str(self.start), self.printed]

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        """See `DedupPool`."""
        return (digits,)

    def write_items(self, split: str, folder: Path) -> None:
        """See `DedupPool`."""
        images, labels = self._chosen(split)
        np.savez(folder / f"{split}.npz", images=images.numpy(), labels=labels.numpy())

    def items(self, folder: Path, split: str) -> str:
        """See `DedupPool`."""
        return str(folder / f"{split}.npz")

    def write_start(self, out: Path) -> None:
        """See `DedupPool`."""
        model = new_transformer(self.hidden, self.layers, seed=self.seed)
        train_on_printed(model, self.start, self.printed, seed=self.seed)
        _save(model, out)

    def lesson(self, start: Path, name: str) -> Lesson:
        """See `DedupPool`."""
        with quiet_transformers():
            model = ViTForImageClassification.from_pretrained(start, dtype=torch.float32)
        trainable_privately(model)
        losses_of = image_losses(*self._chosen(self.experts[name].part))
        return Lesson(model, losses_of, lambda out: _save(model, out))

    def _chosen(self, part: str) -> tuple[Tensor, Tensor]:
        images, labels = handwritten()
        places = self.ranges()[part]
        if places.stop > len(labels):
            raise ValueError(f"the parts need {places.stop} digits, there are {len(labels)}")
        chosen: Sequence[int] = drawn_order(len(labels), self.seed)[places.start : places.stop]
        return images[chosen], labels[chosen]


def _save(model: nn.Module, out: Path) -> None:
    saved: Any = model
    with quiet_transformers():
        saved.save_pretrained(out)
