"""The check before work: everything that can go wrong in seconds, before hours are spent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from evaluators.panel import Panel
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.directory import check_writable
from experiments.setup.common_items import CommonItems
from experiments.setup.study import Study
from merging.privacy.ledger import Ledger

_SAMPLE = 16  # requests per evaluator that the time estimate is taken from


@dataclass(frozen=True)
class Check:
    """What the check found.

    Args:
        lines: one finding each, for a person.
        seconds_per_candidate: estimate, from a merge of the whole model and a few requests.
    """

    lines: tuple[str, ...]
    seconds_per_candidate: float


def check(study: Study, run: Path) -> Check:
    """Returns the findings of a study that is ready to run.

    Raises:
        ValueError: the study cannot run; one sentence with the remedy.
    """
    check_writable(run, "out", study.model_bytes)
    merge_s = _time_merge(study)
    common = CommonItems.open(study.config, study.search_on)
    asked = study.search_on if common is None else common.of(0)
    ask_s = _time_panel(study, asked)
    part = "" if common is None else f"{asked.item_count} of "
    for panel in (study.select_on, study.report_on):
        if panel is not None:
            _time_panel(study, panel)
    lines = [
        f"base        {study.pool.base.source} ({study.parameters / 1e6:.1f}M parameters)",
        f"experts     {', '.join(study.pool.expert_names)}",
        f"search      {study.space.dimensions:,} dimensions, {part}{study.search_on.item_count} "
        f"items on {', '.join(study.search_on.main)}",
        f"device      {study.machine.device}, {str(study.machine.dtype).removeprefix('torch.')}",
        f"memory      about {_memory_bytes(study) / 1e9:.2f} GB for base, experts and model",
        f"candidate   about {merge_s + ask_s:.2f} s ({merge_s:.2f} s merging)",
    ]
    ledger = Ledger.of(study.pool, study.space.plan(study.space.first()), searched=True)
    lines += privacy_lines(ledger.describe())
    lines += _warnings(study)
    return Check(tuple(lines), merge_s + ask_s)


def _memory_bytes(study: Study) -> int:
    sizes = sum(study.pool.base.shape(n).numel() for n in study.pool.base)
    stored = sum(
        study.pool.base.shape(n).numel() * study.pool.base.dtype(n).itemsize
        for n in study.pool.base
    )
    return stored * (1 + len(study.pool.expert_names)) + sizes * study.machine.dtype.itemsize


def _time_merge(study: Study) -> float:
    """Merges the start genome into the resident model: every shape and knob is tried once."""
    began = time.perf_counter()
    study.engine.resident.write(study.space.decode(study.space.first()))
    return time.perf_counter() - began


def _time_panel(study: Study, panel: Panel) -> float:
    """Asks a few requests of every evaluator; returns the estimate for all of them."""
    total = 0.0
    for evaluator in panel.evaluators.values():
        requests = list(evaluator.items.requests)
        spread = np.linspace(0, len(requests) - 1, min(_SAMPLE, len(requests)))
        sample = [requests[int(i)] for i in spread]
        began = time.perf_counter()
        study.engine.run(sample)
        total += (time.perf_counter() - began) * len(requests) / len(sample)
    return total


def _warnings(study: Study) -> list[str]:
    """Returns what is allowed but probably not meant."""
    lines = []
    if study.machine.dtype != torch.float32:
        step = torch.finfo(study.machine.dtype).eps / 2
        lines.append(
            f"warning     {str(study.machine.dtype).removeprefix('torch.')} rounds weights by "
            f"about {step:.0e} of their size: a search step below that changes nothing"
        )
    if study.select_on is None:
        lines.append(
            "warning     no selection items: the winner keeps the luck of its search score"
        )
    return lines
