"""Models of one zoo that take turns in one module: only the bytes in which they differ change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.resident import Resident
from merging.checkpoints.checkpoint import Checkpoint
from merging.weights import CheckpointError
from merging.zoo.blocks import Bytes
from merging.zoo.differences import Differences
from merging.zoo.store import Zoo

_TOLD = "_name_or_path", "transformers_version", "id2label", "label2id"
"""Of a configuration: what computes nothing."""


class ServedSet:
    """One module in memory, and of all other models what they do not share with it.

    Memory holds the module once, in the dtype in which the models are stored, and at most
    `cache_bytes` of raw blocks, a shared one once, whatever the number of models. Bits are those
    of a model that was loaded anew.

    Args:
        zoo: where the models are stored.
        models: their names, one at least; of one architecture, and not recipes.
        cache_bytes: blocks least recently used are let go, and read anew when they are needed.

    Raises:
        CheckpointError: no such model, models of different tensors, or one whose tensors are
            converted when it is loaded.
    """

    def __init__(
        self,
        zoo: Zoo,
        models: Sequence[str],
        *,
        cache_bytes: int = 2**30,
        device: torch.device | str = "cpu",
    ) -> None:
        checkpoint, *others = (Checkpoint.open(str(zoo.view(model))) for model in models)
        if checkpoint.file_names is None:
            raise CheckpointError(
                f"{models[0]}: transformers converts its tensors when it loads them, so that "
                "blocks cannot be served; open the models one by one"
            )
        for model, other in zip(models[1:], others, strict=True):
            if _kind(other) != _kind(checkpoint):
                raise CheckpointError(
                    f"{model} has another configuration or other tensors than {models[0]}; serve "
                    "it in another set"
                )
        dtype = Counter(checkpoint.dtype(name) for name in checkpoint).most_common(1)[0][0]
        self.resident = Resident(
            checkpoint.module(dtype=dtype, device=torch.device(device)),
            tokenizer=checkpoint.tokenizer(),
            image_processor=checkpoint.image_processor(),
            device=device,
        )
        self._writers = [self._writer(checkpoint, name) for name in checkpoint.file_names]
        self.differences = Differences(zoo, models, checkpoint.file_names.values(), cache_bytes)
        self._now: str | None = models[0]

    def serve(self, model: str) -> int:
        """Makes the resident this model; returns how many bytes were written.

        Raises:
            CheckpointError: a model that is not in the set; or a block cannot be read: which model
                the resident is then is undefined until the next call that succeeds.
        """
        if model not in self.differences:
            raise CheckpointError(f"{model} is not in the served set; name it when it is opened")
        now, self._now, written = self._now, None, 0
        for tensor, at, raw in self.differences.between(now, model):
            self._writers[tensor](at, raw)
            written += len(raw)
        self._now = model
        return written

    def _writer(self, checkpoint: Checkpoint, name: str) -> Callable[[int, Bytes], None]:
        """Returns what writes bytes into one of the resident's tensors, from a byte of it on."""
        target = self.resident.tensor(name)
        if target.dtype != checkpoint.dtype(name) or not target.is_contiguous():
            raise CheckpointError(
                f"{checkpoint.source}: {name} is stored as {checkpoint.dtype(name)}, the model "
                f"holds it as {target.dtype}; save all of it in one dtype"
            )
        memory = target.detach().view(-1).view(torch.uint8)
        return partial(_write, memory.numpy() if memory.device.type == "cpu" else memory)


def _kind(checkpoint: Checkpoint) -> Any:
    """Returns what models of one set have in common: how they compute, and their tensors."""
    config = checkpoint.config.to_diff_dict()
    said = {key: value for key, value in config.items() if key not in _TOLD}
    return checkpoint.architecture, said, checkpoint.file_names


def _write(memory: Bytes | Tensor, at: int, raw: Bytes) -> None:
    if isinstance(memory, Tensor):
        # a copy, as torch takes no memory that it may not change
        memory[at : at + len(raw)] = torch.from_numpy(raw.copy())
    else:
        memory[at : at + len(raw)] = raw
