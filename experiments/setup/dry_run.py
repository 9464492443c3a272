"""What can be tried before checkpoints are fetched or trained, and before models are asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import LlamaConfig

from evaluators.evaluator import Direction
from evaluators.panel import Panel
from evaluators.split import Split
from evaluators.tasks.data import data_path
from experiments.runs.options import check_groups
from experiments.setup import assemble
from experiments.setup.common_items import check_common_items
from experiments.setup.execution_checks import check_execution
from experiments.setup.in_hull import check_in_hull
from experiments.setup.pairing import check_pair, check_used
from experiments.setup.parts import SearchParts
from experiments.setup.private_checks import check_privacy
from experiments.setup.problem import open_space, open_strategy
from experiments.setup.racing_checks import bound_on_made_up, check_racing
from merging.checkpoints.experts import ExpertPool
from search.strategy import Outcome


class _StandInBase(dict[str, Tensor]):
    """Two layers that can be rearranged and scaled."""

    source = "stand-in"

    def __init__(self) -> None:
        super().__init__({f"layers.{i}.weight": torch.empty(1) for i in range(2)})
        self.config = LlamaConfig(num_hidden_layers=2)

    def shape(self, name: str) -> torch.Size:
        return self[name].shape


@dataclass(frozen=True)
class _StandIn:
    """A pool without weights: all that a space reads until a genome is decoded."""

    names: tuple[str, ...] = ("layers.0.weight",)
    expert_names: tuple[str, ...] = ("first", "second")
    base: _StandInBase = field(default_factory=_StandInBase)


def dry_run(config: DictConfig) -> SearchParts:
    """Builds the parts of a search that need no experts, and tries them on a stand-in for these.

    Raises:
        ValueError: a wrong device, method, knob, bound, optimizer, ... no evaluator to search
            on, or a data file that is missing or empty.
    """
    check_groups(config)
    parts = SearchParts.open(config)
    check_pair(config)
    check_used(config)
    check_in_hull(config, cast(ExpertPool, _StandIn()))
    if not any((config.search_on or {}).values()):
        raise ValueError(
            "search_on names no evaluator: choose a group, e.g. evaluator@search_on=perplexity"
        )
    _one_generation(config, parts)
    for entries in (config.search_on, config.select_on, config.report_on):
        check_data(entries)
    return parts


def _one_generation(config: DictConfig, parts: SearchParts) -> None:
    """Asks a strategy once and tells it made-up outcomes of the objective's shape.

    Raises:
        ValueError: the strategy cannot work with so many objectives, says it in its own words.
    """
    # A space and a strategy for the stand-in, thrown away: what they refuse is refused before
    # experts are fetched or trained.
    domain: Mapping[str, Any] = {"starts": ("start",), "founders": _StandIn.expert_names}
    if "axes" in assemble.open_part(config.space).func.gives:
        domain = open_space(config.space, cast(ExpertPool, _StandIn()), None).domain
    strategy = open_strategy(config.strategy, domain, config.seed)
    names = _objective_names(config, parts.objective)
    if config.choose == "shrinkage" and len(names) > 1:
        raise ValueError(
            f"choose=shrinkage ranks by one number, the objective has {len(names)}: "
            "choose=second_look, or choose an objective with one"
        )
    if config.choose == "shrinkage" and getattr(strategy, "keeps", ()):
        raise ValueError(
            f"choose=shrinkage looks at nothing again, {type(strategy).__name__} compares its "
            "winner with its start on the selection items: choose=second_look, or another strategy"
        )
    candidates = strategy.ask()
    check_common_items(config, strategy, len(candidates), len(names))
    check_racing(config, parts.racing, type(strategy).__name__, len(candidates), len(names))
    check_privacy(config, parts, len(candidates), len(names))
    check_execution(config, parts.execution, strategy)
    if candidates:
        ids = [candidate.id for candidate in candidates]
        fitness = [np.full(len(names), 0.5 / (1 + number)) for number in ids]
        strategy.tell(
            [Outcome(i, value, np.ones(2)) for i, value in zip(ids, fitness, strict=True)]
        )


def _objective_names(config: DictConfig, objective: Any) -> tuple[str, ...]:
    """Returns the names of the objectives, from made-up scores of the tasks' main metrics."""
    chosen: Mapping[str, str] = getattr(objective, "metrics", None) or {}
    tasks = [str(task) for task, entry in config.search_on.items() if entry is not None]
    main = {task: f"{task}/{chosen.get(task, 'main')}" for task in tasks}
    directions: dict[str, Direction] = dict.fromkeys(main.values(), "maximize")
    limits: Mapping[str, Any] = getattr(objective, "limits", None) or {}
    directions.update({main.get(name, name): "minimize" for name in limits})
    return bound_on_made_up(objective, directions, main).names


def check_data(entries: Mapping[str, Any] | None) -> None:
    """Raises ValueError where a task of a panel is unknown, its data file missing or empty."""
    for entry in (entries or {}).values():
        if entry is not None and isinstance(data := entry.get("data"), str):
            path = data_path(data, entry.get("split"))
            if not path.stat().st_size:
                raise ValueError(f"data file {path} is empty: name a file that holds items")
        if entry is not None and str(entry.get("_target_")).startswith("evaluators.harness."):
            _check_task(entry)


def _check_task(entry: Mapping[str, Any]) -> None:
    from evaluators.harness.task_files import check_known  # imports lm-eval

    task, include_path = entry.get("task"), entry.get("include_path")
    if isinstance(task, str) and isinstance(include_path, str | None):
        check_known(task, include_path)


def check_panels(panels: Mapping[Split, Panel], objective: Any) -> None:
    """Raises ValueError where a panel lacks a metric that the objective is made of; names it."""
    search = panels["search"]
    keys = bound_on_made_up(objective, search.directions, search.main).keys
    for panel in panels.values():
        if missing := [key for key in keys if key not in panel.directions]:
            raise ValueError(
                f"{panel.split} items: no task there gives {', '.join(missing)}, which the "
                "objective is made of: name the tasks of search_on there too, or leave them out "
                "of the objective"
            )
