"""The parts of a search that need no experts, each built once from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from experiments.setup import assemble
from experiments.setup.assemble import Machine
from experiments.setup.execution import Execution
from experiments.setup.initial import Initial
from experiments.setup.racing_checks import open_racing
from merging.method import MergeMethod
from search.privacy.privacy import SearchPrivacy
from search.racing.racing import Racing


@dataclass(frozen=True)
class SearchParts:
    """What is built before an expert is opened.

    Args:
        objective: scores to fitness, not yet bound to base and experts.
        baselines: static merges that are scored beside the evolved one, by name.
        held_out: how many of these are read on the held-out items; None: all.
        execution: where candidates are scored; nothing is started yet.
        racing: rule by which candidates are dropped early; None: none is.
        privacy: what the search may spend; None: its items are not private.
    """

    machine: Machine
    initial: Initial
    objective: Any
    baselines: Mapping[str, MergeMethod]
    held_out: int | None
    execution: Execution
    racing: Racing | None
    privacy: SearchPrivacy | None

    @classmethod
    def open(cls, config: DictConfig) -> SearchParts:
        """Returns the parts that the configuration of a search names."""
        baselines = dict(config.baselines)
        held_out = baselines.pop("report")
        return cls(
            machine=assemble.open_machine(config),
            baselines={str(name): assemble.open_part(entry) for name, entry in baselines.items()},
            held_out=None if held_out == "all" else held_out,
            initial=assemble.open_part(config.initial),
            objective=assemble.open_part(config.objective),
            execution=assemble.open_part(config.execution),
            racing=open_racing(config),
            privacy=_privacy(config),
        )


def _privacy(config: DictConfig) -> SearchPrivacy | None:
    if not config.get("privacy"):
        return None
    privacy = assemble.open_part(config.privacy)
    if not isinstance(privacy, SearchPrivacy):
        raise ValueError("this is a search: choose privacy=means, or differences for dp_zo")
    return privacy
