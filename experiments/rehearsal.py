"""What can be tried before checkpoints are fetched or trained, and before models are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import LlamaConfig

from evaluators.data import data_path
from evaluators.panel import Panel
from experiments import assemble
from experiments.in_hull import check_in_hull
from experiments.options import check_groups
from experiments.pairing import check_pair
from merging.experts import ExpertPool
from merging.weights import Weights


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


def rehearse(config: DictConfig) -> None:
    """Builds start, space, strategy, objective and baselines on a stand-in for the experts.

    Raises:
        ValueError: a wrong device, method, knob, bound, optimizer, ... no evaluator to search
            on, or a data file that is missing or empty.
    """
    check_groups(config)
    assemble.open_machine(config)
    assemble.open_baselines(config)
    assemble.open_partial(config.objective)
    assemble.open_initial(config)
    build = assemble.open_partial(config.space)
    check_pair(build, assemble.open_partial(config.strategy))
    if "axes" in build.func.gives:
        space = assemble.open_space(config, cast(ExpertPool, _StandIn()), None)
        assemble.open_strategy(config, space)
    check_in_hull(config, cast(ExpertPool, _StandIn()))
    if not any((config.search_on or {}).values()):
        raise ValueError(
            "search_on names no evaluator: choose a group, e.g. evaluator@search_on=perplexity"
        )
    for entries in (config.search_on, config.select_on, config.report_on):
        check_data(entries)


def check_data(entries: Mapping[str, Any] | None) -> None:
    """Raises ValueError where a task of a panel names a data file that is missing or empty."""
    for entry in (entries or {}).values():
        if entry is not None and isinstance(data := entry.get("data"), str):
            path = data_path(data, entry.get("split"))
            if not path.stat().st_size:
                raise ValueError(f"data file {path} is empty: name a file that holds items")


def check_merges(weights: Weights, pool: ExpertPool) -> None:
    """Computes the smallest tensor of a merge of `pool`.

    Raises:
        MergeError: the method does not take these experts or these knobs.
    """
    given = set(weights)  # a stack of layers may lack what the pool merges
    names = [name for name in pool.names if name in given] or list(weights)[:1]
    weights[min(names, key=lambda name: pool.base.shape(name).numel())]


def check_panels(
    search_on: Panel, select_on: Panel | None, report_on: Panel | None, objective: Any
) -> None:
    """Refuses splits that overlap, and tasks and metrics that the objective cannot find.

    Raises:
        ValueError: names both splits and tasks, or the task and metric.
    """
    panels = [panel for panel in (search_on, select_on, report_on) if panel is not None]
    for i, panel in enumerate(panels):
        for other in panels[i + 1 :]:
            panel.check_apart(other)
    # Made-up scores, so that a wrong task or metric is found without asking the model.
    for panel in panels:
        better = {k: 1.0 if way == "maximize" else -1.0 for k, way in panel.directions.items()}
        objective.bind(
            panel.directions,
            panel.main,
            dict.fromkeys(panel.directions, 0.0),
            {"expert": better},
        )
