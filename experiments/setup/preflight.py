"""The check before work: everything that can go wrong in seconds, before hours are spent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.engine.engine import Engine
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, TransientFailure
from evaluators.tries import tries
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.directory import check_writable
from experiments.runs.item_counts import count_lines, item_counts
from experiments.runs.progress import ProgressBar
from experiments.setup.common_items import CommonItems
from experiments.setup.ingredients import Ingredients
from experiments.setup.problem import Problem
from merging.checkpoints.adapters import Adapter
from merging.checkpoints.expert import CheckpointExpert
from merging.privacy.ledger import Ledger
from merging.recipe import dtype_name
from merging.saving.save import saved_bytes

_SAMPLE = 16  # requests of every evaluator that are tried


def check(
    ingredients: Ingredients,
    trial: Problem,
    common: CommonItems | None,
    run: Path,
    *,
    objective: Mapping[str, Any],
    save_model: bool,
) -> list[str]:
    """Returns what is found out of a search that is ready to run, a line each for a person.

    It has merged a whole model, and every evaluator has asked it a few requests.

    Args:
        trial: the problem as it stands before anything is scored.
        common: the items of every generation; None: all search items for all.
        run: directory of the search.
        objective: its options, which may name tasks that are not judged by their main metric.
        save_model: whether the winner is written as a model.

    Raises:
        ValueError: the search cannot run; one sentence with the remedy.
        EvaluationError: the first candidate cannot be scored.
    """
    pool, machine, panels = ingredients.pool, ingredients.machine, ingredients.panels
    first = trial.first.weights(ingredients.held, dtype=torch.float32)
    writes = save_model and not (run / "model").exists()
    size = saved_bytes(pool, machine.save_dtype, weights=first) if writes else 0
    check_writable(run, "out", size)
    evaluators = sum(len(panel.evaluators) for panel in panels.values())
    for one in tries(lambda: None):
        with one, ProgressBar(1 + evaluators, "trying a merge and requests", "step") as bar:
            ingredients.engine.resident.write(first)  # every shape and knob is tried once
            bar.update()
            for panel in panels.values():
                _try(ingredients.engine, panel, bar)
    search = panels["search"]
    part = "" if common is None else f"{common.item_count} of "
    parameters = sum(p.numel() for p in ingredients.engine.resident.module.parameters())
    return [
        f"base        {pool.base.source} ({parameters / 1e6:.1f}M parameters)",
        f"experts     {', '.join(pool.expert_names)}",
        f"search      {trial.space.dimensions:,} dimensions, {part}{search.item_count} items on "
        f"{', '.join(search.main)}",
        *count_lines(item_counts(panels, objective)),
        f"device      {machine.device}, {dtype_name(machine.dtype)}",
        *privacy_lines(Ledger.of(pool, trial.first, searched=True).describe()),
        *(f"overlap     {line}" for panel in panels.values() for line in panel.dropped),
        *_warnings(ingredients),
    ]


def memory_line(ingredients: Ingredients, peak_bytes: int) -> str:
    """Returns how much memory a search takes, for a person.

    Args:
        peak_bytes: the most that was held while a merge, static merges and batches of requests
            were tried; 0: not known.
    """
    kept, models = ingredients.held.kept_bytes, _model_bytes(ingredients)
    held = "model" if ingredients.held.in_files else "base, experts and model"
    parts = f"{models / 1e9:.2f} {held}, {kept / 1e9:.2f} kept (keep_gb)"
    if ingredients.held.in_files:
        parts += ", base and experts in their files (stream)"
    if not peak_bytes:
        return f"memory      about {(models + kept) / 1e9:.2f} GB and batches: {parts}"
    return f"memory      about {peak_bytes / 1e9:.2f} GB: {parts}, the rest program and batches"


def _model_bytes(ingredients: Ingredients) -> int:
    """Returns the bytes of base, experts as they are held, and the resident model."""
    pool = ingredients.pool
    base = sum(pool.base.shape(n).numel() * pool.base.dtype(n).itemsize for n in pool.base)
    adapters = [e for e in pool.experts.values() if isinstance(e, Adapter)]
    factors = sum(tensor.nbytes for adapter in adapters for _, tensor in adapter.stored())
    full = [e.checkpoint for e in pool.experts.values() if isinstance(e, CheckpointExpert)]
    held = [m for m in (pool.base, *full) if not (ingredients.held.in_files and m.in_files)]
    module: int = sum(p.nbytes for p in ingredients.engine.resident.module.parameters())
    return base * len(held) + factors + module


def _try(engine: Engine, panel: Panel, bar: ProgressBar) -> None:
    """Asks a few requests of every evaluator."""
    for evaluator in panel.evaluators.values():
        requests = list(evaluator.items.requests)
        spread = np.linspace(0, len(requests) - 1, min(_SAMPLE, len(requests)))
        try:
            engine.run([requests[int(i)] for i in spread])
        except EvaluationError as error:
            raise ValueError(f"{panel.split} items: {error}") from error
        except TransientFailure as error:
            raise TransientFailure(f"{panel.split} items: {error}") from error
        bar.update()


def _warnings(ingredients: Ingredients) -> list[str]:
    """Returns what is allowed but probably not meant."""
    dtype, lines = ingredients.machine.dtype, []
    if dtype != torch.float32:
        lines.append(
            f"warning     {dtype_name(dtype)} rounds weights by about "
            f"{torch.finfo(dtype).eps / 2:.0e} of their size: a search step below that changes "
            "nothing"
        )
    if "selection" not in ingredients.panels:
        lines.append(
            "warning     no selection items: the winner keeps the luck of its search score"
        )
    return lines
