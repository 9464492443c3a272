"""A target in memory, whose blocks are exchanged in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from merging.checkpoints.experts import ExpertPool
from merging.weights import Weights

HEAD = "model"
"""Head of a classifier in the configuration of evaluators, as for `evomerge evaluate`."""


@dataclass(frozen=True, eq=False)
class LoadedTarget:
    """One model that answers.

    Args:
        module: what answers: a classifier with its head, or the model itself.
    """

    resident: Resident
    engine: Engine
    module: nn.Module

    @classmethod
    def of(
        cls,
        source: str,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        engine: Callable[[Resident], Engine] = Engine,
        trust_remote_code: bool = False,
    ) -> LoadedTarget:
        """Returns the model of a directory or id, on a device.

        Args:
            engine: makes what asks the resident model.

        Raises:
            CheckpointError: it cannot be opened.
        """
        pool = ExpertPool.open(source, {HEAD: source}, trust_remote_code=trust_remote_code)
        pool.check_finite()
        resident = Resident.from_pool(pool, device=device, dtype=dtype)
        if resident.info.causal:
            _ = resident.capabilities  # measured before the first change
        return cls(resident, engine(resident), resident.classifiers.get(HEAD, resident.module))

    @cached_property
    def state(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name, themselves."""
        return {
            **dict(self.module.named_parameters(remove_duplicate=False)),
            **dict(self.module.named_buffers(remove_duplicate=False)),
        }

    def write(self, weights: Weights) -> None:
        """Copies all tensors of another model of the same names and shapes; dtypes may differ."""
        with torch.no_grad():
            for name in weights:
                self.state[name].copy_(weights[name])
