"""Both sides in one process: what is sent is handed over; bits are those of two processes."""

import torch
from torch import Tensor

from experiments.experts.split.states import StateFolder, States
from experiments.experts.split.vendor import Vendor


def fine_tune(vendor: Vendor, sent: StateFolder) -> None:
    """Trains the vendor's half on the states of a customer's folder."""
    for states in sent.batches(len(vendor.received)):
        vendor.received.append(
            States.read(states.tensors(), width=vendor.width, classes=vendor.classes)
        )
    vendor.train()


def answers(vendor: Vendor, asked: StateFolder) -> Tensor:
    """Returns ``(examples, classes)`` logits of the states in a customer's folder."""
    return torch.cat([vendor.answer(states.apart()) for states in asked.batches()])
