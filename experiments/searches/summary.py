"""The summary of a finished run: every number that tables and reports show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from evaluators.panel import Panel
from experiments.reports.front_plot import constraint_of
from experiments.runs.device import peak_memory_bytes
from experiments.runs.directory import run_identity
from experiments.runs.model_scores import IN_HULL, Kind, ModelRow, ModelScores, fitness_of
from experiments.searches.certificate import InHull
from experiments.searches.references import References
from experiments.setup.study import Study
from merging.files import write_text
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe, dtype_name
from merging.spaces.displaced import DisplacedSpace
from search.loop.session import SearchResult
from search.objective import BoundObjective, Objective
from search.winners.selection import Finalist


@dataclass(frozen=True)
class Finished:
    """All that a search has found out.

    Args:
        config: of the run.
        study: what was searched.
        run: the run's directory.
        rivals: base, experts and static merges on the search items.
        objective: bound on the search items.
        result: of the loop; its records are those that can be compared.
        finalists: the winner first.
        selecting: objective bound on the selection items; None: there are none.
        report: all models on the held-out items; None: there are none.
        reporting: objective bound on the held-out items; None: there are none.
        recipe: of the winner.
        certificate: of the hull, see `write_certificate`.
        inside: the best point inside the hull at equal budget; None: there is none.
        item_evaluations: search items that candidates were asked, each time counted.
        ledger: what the winner's private data cost.
    """

    config: DictConfig
    study: Study
    run: Path
    rivals: Mapping[str, ModelScores]
    objective: Objective
    result: SearchResult
    finalists: Sequence[Finalist]
    report: Mapping[str, ModelScores] | None
    reporting: Objective | None
    recipe: Recipe
    certificate: Mapping[str, Any]
    inside: InHull | None
    item_evaluations: int
    ledger: Ledger


def write_summary(found: Finished) -> dict[str, Any]:
    """Writes ``summary.json``, which marks the run as finished, and returns its content."""
    study, result, winner = found.study, found.result, found.finalists[0]
    _keep_selection_items(found)
    looked = winner.selection if winner.selection is not None else winner.search
    if winner.shrunken is not None:
        looked = np.array([winner.shrunken])
    models = _models(found)
    held_out = models[-1].fitness("report")
    optimism = None if held_out is None else float(np.mean(winner.search) - np.mean(held_out))
    options = OmegaConf.to_container(found.config, resolve=True)
    assert isinstance(options, dict)
    ledger = found.ledger.describe()
    summary = {
        "name": found.config.name,
        "run": found.run.name,
        "identity": run_identity(found.config),
        "seed": found.config.seed,
        "strategy": _label(options["strategy"]),
        "method": found.recipe.plan.name,
        "space": f"{_space_name(study.space)}, {study.space.dimensions:,} dimensions",
        "objectives": list(found.objective.names),
        "tasks": _tasks(study.search_on),
        "report_tasks": {}
        if study.report_on is None
        else _tasks(study.report_on, study.search_on),
        "terms": _terms(found.reporting),
        "constraint": constraint_of(found.objective),
        "models": [model.to_json() for model in models],
        "finalists": [
            {
                "id": each.id,
                "search": each.search.tolist(),
                "selection": None if each.selection is None else each.selection.tolist(),
                "shrunken": each.shrunken,
            }
            for each in found.finalists
        ],
        "fitness": float(np.mean(looked)),
        "optimism": optimism,
        "certificate": {key: found.certificate[key] for key in ("sentences", "gain")},
        "privacy": {k: ledger[k] for k in ("private", "words", "data_sets", "unrecorded")},
        "budget": options["budget"],
        "stop": result.stop,
        "evaluations": result.evaluations,
        "item_evaluations": found.item_evaluations,
        "failures": result.failures,
        "repeats": result.repeats,
        "seconds": result.seconds,
        "peak_memory_bytes": peak_memory_bytes(study.machine.device),
        "device": str(study.machine.device),
        "dtype": dtype_name(study.machine.dtype),
    }
    write_text(found.run / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _tasks(panel: Panel, other: Panel | None = None) -> dict[str, Any]:
    """Returns the tasks of a panel, but not those that `other` has as well."""
    return {
        task: {"metric": key, "direction": panel.directions[key]}
        for task, key in panel.main.items()
        if other is None or task not in other.main
    }


def _space_name(space: Any) -> str:
    """Returns the class of a space, and of the one that it displaces."""
    name = type(space).__name__
    return f"{name} of {type(space.inner).__name__}" if isinstance(space, DisplacedSpace) else name


def _keep_selection_items(found: Finished) -> None:
    """Scores the winner, as it is saved, on the selection items for the sake of its items."""
    study, panel = found.study, found.study.select_on
    if panel is not None:
        References(study, found.run / "references.jsonl").score_one(
            "evolved",
            "evolved",
            panel,
            lambda: found.recipe.plan.weights(study.held, dtype=study.machine.save_dtype),
        )


def _terms(objective: Objective | None) -> list[dict[str, Any]] | None:
    """Returns how held-out scores make a fitness: ``sum weight * (sign * score - base) / span``.

    Several objectives: equal weights, as their mean is what models are ranked by. None: there are
    no held-out items, or the objective is not made of terms.
    """
    if not isinstance(objective, BoundObjective):
        return None
    weights = objective.weights or [1 / len(objective.terms)] * len(objective.terms)
    return [
        {**asdict(term), "weight": weight}
        for term, weight in zip(objective.terms, weights, strict=True)
    ]


def _label(strategy: Mapping[str, Any]) -> str:
    """Returns the class of a strategy, with the optimizer where it names one."""
    name = str(strategy["_target_"]).rsplit(".", 1)[-1]
    return f"{name}({strategy['optimizer']})" if "optimizer" in strategy else name


def _models(found: Finished) -> list[ModelRow]:
    """Returns a row per model, last the companion's inside the hull and the evolved one."""
    rows = []
    for label, scores in found.rivals.items():
        cells = [scores.judged(found.objective)]
        if found.report:
            cells.append(found.report[label].judged(found.reporting))
        rows.append(ModelRow(label, scores.kind, {cell.split: cell for cell in cells}))
    if (inside := found.inside) is not None:
        held_out = None if inside.report is None else inside.report.judged(found.reporting)
        rows.append(_winner(IN_HULL, "in_hull", inside.winner, inside.scores, held_out))
    winner = found.finalists[0]
    record = next(r for r in found.result.records if r.id == winner.id)
    held_out = found.report["evolved"].judged(found.reporting) if found.report else None
    rows.append(_winner("evolved", "evolved", winner, record.scores, held_out))
    return rows


def _winner(
    name: str,
    kind: Kind,
    winner: Finalist,
    scores: Mapping[str, float],
    held_out: ModelScores | None,
) -> ModelRow:
    """Returns the row of a search's winner."""
    search = fitness_of(winner.search.tolist())
    cells = [ModelScores(name, kind, "search", scores, fitness=search)]
    if winner.selection is not None:
        fitness = fitness_of(winner.selection.tolist())
        cells.append(ModelScores(name, kind, "selection", winner.scores, fitness=fitness))
    if held_out is not None:
        cells.append(held_out)
    return ModelRow(name, kind, {cell.split: cell for cell in cells})
