"""A target in memory, whose blocks are exchanged in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from merging.checkpoints.experts import ExpertPool

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
    def of(cls, source: str, *, trust_remote_code: bool, **machine: Any) -> LoadedTarget:
        """Returns the model of a directory or id, on a device.

        Args:
            machine: ``device`` and ``dtype`` of the resident model; all else is the engine's.

        Raises:
            CheckpointError: it cannot be opened.
        """
        pool = ExpertPool.open(source, {HEAD: source}, trust_remote_code=trust_remote_code)
        pool.check_finite()
        resident = Resident.from_pool(
            pool, device=machine.pop("device"), dtype=machine.pop("dtype")
        )
        if resident.info.causal:
            _ = resident.capabilities  # measured before the first change
        engine = Engine(resident, **machine)
        return cls(resident, engine, resident.classifiers.get(HEAD, resident.module))

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name, themselves."""
        return {
            **dict(self.module.named_parameters(remove_duplicate=False)),
            **dict(self.module.named_buffers(remove_duplicate=False)),
        }
