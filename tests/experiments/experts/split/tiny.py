"""A tiny base, labelled examples, and both sides over them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from experiments.experts.sentences.training import sentence_schedule
from experiments.experts.split.customer import Customer, EncodedSentence
from experiments.experts.split.halves import Bottom
from experiments.experts.split.states import StateFolder
from experiments.experts.split.vendor import Vendor, VendorSettings
from experiments.experts.training.language_model import Lora
from merging.checkpoints.checkpoint import Checkpoint
from merging.seeding import generator

LORA = Lora(rank=2, alpha=4, dropout=0.1, targets=())


class SeededNoise:
    """Normal noise that follows from an example's name."""

    def privatize(
        self, states: Tensor, tokens: Tensor, example: str, label: int | None = None
    ) -> Tensor:
        return states + 0.1 * torch.randn(states.shape, generator=generator("noise", example))


def examples(count: int, *, labelled: bool = True, first: int = 0) -> list[EncodedSentence]:
    """The class is whether token 10 stands in it, among others of no meaning."""
    found = []
    for i in range(first, first + count):
        draw = generator("example", i)
        tokens = torch.randint(20, 250, (3 + i % 5,), generator=draw).tolist()
        label = i % 2
        found.append(EncodedSentence((1, *tokens, 10 + label, 2), label if labelled else None))
    return found


def settings(steps: int = 12, **options: object) -> VendorSettings:
    schedule = sentence_schedule(steps, batch=4, learning_rate=1e-2)
    return VendorSettings(schedule, LORA, checkpoint_steps=5, **options)  # type: ignore[arg-type]


def customer(base: Checkpoint, blocks: int) -> Customer:
    encoder = base.module(dtype=torch.float32, device=torch.device("cpu"))
    return Customer(Bottom(encoder, blocks), SeededNoise())


def sent(base: Checkpoint, blocks: int, folder: Path, count: int = 24) -> StateFolder:
    states = StateFolder(folder, {"blocks": blocks})
    customer(base, blocks).fill(states, examples(count), "train", together=5)
    return states


def vendor(base: Checkpoint, blocks: int, folder: Path, **options: object) -> Vendor:
    return Vendor(base, blocks, 2, settings(**options), folder, identity={})  # type: ignore[arg-type]
