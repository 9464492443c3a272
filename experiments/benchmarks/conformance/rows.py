"""One row of the matrix: a model type, and what each capability came to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from evaluators.engine.resident import Resident
from experiments.benchmarks.conformance import language_models, merged_models, mergekit_side
from experiments.benchmarks.conformance.sizes import LENGTH
from experiments.benchmarks.conformance.tiny_models import (
    ERRORS,
    EXPERTS,
    NotBuilt,
    Saved,
    reason,
    save,
)
from merging.checkpoints.experts import ExpertPool
from merging.weights import CheckpointError

Row = dict[str, Any]
"""``type`` and either ``not built`` with the reason, or ``class``, ``cells`` and ``notes``."""


@dataclass(eq=False)
class Tried:
    """One type's base, experts and merges."""

    saved: Saved
    pool: ExpertPool

    @cached_property
    def resident(self) -> Resident:
        """Holds the TIES merge."""
        options: Any = {"device": "cpu", "dtype": torch.float32, "max_length": LENGTH}
        resident = Resident.from_pool(self.pool, **options)
        resident.write(merged_models.plan_of("ties", self.pool).weights(self.pool))
        return resident

    @cached_property
    def right(self) -> Any:
        """The same as transformers loads it."""
        return self.saved.load("ties")

    def merge(self) -> str:
        """Returns what merging, saving and reloading came to."""
        wrong = merged_models.check(self.saved, self.pool)
        return f"wrong: {'; '.join(wrong)}" if wrong else "right"

    @property
    def writes(self) -> bool:
        """Whether transformers has the model write text from tokens alone."""
        can = getattr(self.pool.base.skeleton, "can_generate", None)
        return can is not None and bool(can())

    def likelihoods(self) -> str | None:
        """Returns what the engine's log-likelihoods came to."""
        return self._asked(language_models.likelihoods)

    def generation(self) -> str | None:
        """Returns what its greedy texts came to."""
        return self._asked(language_models.generation)

    def _asked(self, asked: Callable[..., str]) -> str | None:
        if not self.writes:
            return None
        return asked(self.resident, self.right, self.saved.load("base"))

    def population(self) -> str | None:
        """Returns what candidates in shared passes came to."""
        able = self.resident.capabilities if self.writes else None
        if able is None or able.error or (self.resident.info.causal and not able.causal):
            return None
        return language_models.population(self.resident, self.right, self.pool.names)

    def mergekit(self) -> str | None:
        """Returns what mergekit's merge came to."""
        return mergekit_side.check(self.saved)


CAPABILITIES: Mapping[str, Callable[[Tried], str | None]] = {
    "merge": Tried.merge,
    "likelihoods": Tried.likelihoods,
    "generation": Tried.generation,
    "population": Tried.population,
    "mergekit": Tried.mergekit,
}
"""What is tried, in this order; each comes to ``right``, ``refused: ...``, ``wrong: ...`` or None
where it does not apply."""


def row(model_type: str) -> Row:
    """Returns what came of a type."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            saved = save(model_type, Path(folder))
        except NotBuilt as error:
            return {"type": model_type, "not built": str(error).replace(folder, "DIR")}
        kind = type(saved.load("base")).__name__
        built: Row = {"type": model_type, "class": kind, "cells": {}, "notes": []}
        try:
            pool = ExpertPool.open(saved.path("base"), {e: saved.path(e) for e in EXPERTS})
        except CheckpointError as error:
            built["cells"]["merge"] = f"refused: {error}".replace(folder, "DIR")
            return built
        tried = Tried(saved, pool)
        for name, capability in CAPABILITIES.items():
            try:
                cell = capability(tried)
            except ERRORS as error:
                cell = f"wrong: {reason(error)}"
            if cell is not None:
                built["cells"][name] = cell.replace(folder, "DIR")
        asked = (built["cells"].get("likelihoods"), built["cells"].get("generation"))
        if "right" in asked and tried.resident.info.causal:
            built["notes"] = notes(tried)
    return built


def notes(tried: Tried) -> list[str]:
    """Returns what the engine does otherwise for want of a capability."""
    able = tried.resident.capabilities
    said = [] if able.grows else ["generates one by one"]
    return said if able.shares else [*said, "computes shared beginnings anew"]
