"""The summary of a finished run: every number that tables and reports show."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluators.panel import Panel
from experiments.runs.device import peak_memory_bytes
from experiments.runs.item_counts import item_counts
from experiments.runs.model_scores import (
    IN_HULL,
    Kind,
    ModelRow,
    ModelScores,
    fitness_of,
    told_apart,
)
from experiments.searches.outcome import SearchOutcome
from merging.files import write_text
from merging.recipe import dtype_name
from merging.spaces.displaced import DisplacedSpace
from search.objective import TIE, BoundObjective, Objective
from search.winners.selection import Finalist


def write_summary(outcome: SearchOutcome, certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Writes ``summary.json`` and returns its content; `certificate` is `write_certificate`'s."""
    from experiments.reports.front_plot import constraint_of  # imports matplotlib

    result, winner, options = outcome.result, outcome.finalists[0], outcome.options
    machine = outcome.references.ingredients.machine
    panels = outcome.references.ingredients.panels
    looked = winner.selection if winner.selection is not None else winner.search
    if winner.shrunken is not None:
        looked = np.array([winner.shrunken])
    models = _models(outcome)
    cells = [cell for model in models for cell in model.scores.values()]
    ledger = outcome.ledger.describe()
    private = bool(options["privacy"])  # one long document shows in time and memory
    summary = {
        "name": options["name"],
        "run": outcome.run.name,
        "identity": outcome.identity,
        "seed": options["seed"],
        "strategy": _label(options["strategy"]),
        "method": outcome.recipe.plan.name,
        "space": f"{_space_name(outcome.space)}, {outcome.space.dimensions:,} dimensions",
        "numbers": _numbers(outcome.space),
        "objectives": list(outcome.objective.names),
        "tasks": _tasks(panels["search"]),
        "report_tasks": _tasks(panels["report"], panels["search"]) if "report" in panels else {},
        "held_out": "all" if private else options["baselines"]["report"],  # see `best_statics`
        "items": item_counts(panels, options["objective"]),
        "overlap": [line for panel in panels.values() for line in panel.dropped],
        "notes": [*outcome.notes, *told_apart(cells)],
        "terms": _terms(outcome.objective),
        "ties": _ties(outcome.objective),
        "constraint": constraint_of(outcome.objective),
        "models": [model.to_json() for model in models],
        "finalists": [
            {
                "id": finalist.id,
                "search": finalist.search.tolist(),
                "selection": None if finalist.selection is None else finalist.selection.tolist(),
                "shrunken": finalist.shrunken,
            }
            for finalist in outcome.finalists
        ],
        "fitness": float(np.mean(looked)),
        "optimism": _optimism(models[0], models[-1]),
        "certificate": {key: certificate[key] for key in ("sentences", "gain")},
        "privacy": {k: ledger[k] for k in ("private", "words", "data_sets", "unrecorded")},
        "budget": options["budget"],
        "stop": result.stop,
        "evaluations": result.evaluations,
        "item_evaluations": outcome.item_evaluations,
        "failures": result.failures,
        "repeats": result.repeats,
        "seconds": None if private else result.seconds,
        "peak_memory_bytes": None if private else peak_memory_bytes(machine.device),
        "device": str(machine.device),
        "dtype": dtype_name(machine.dtype),
    }
    write_text(outcome.run / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _tasks(panel: Panel, other: Panel | None = None) -> dict[str, Any]:
    """Returns the tasks of a panel, but not those that `other` has as well."""
    return {
        task: {"metric": key, "direction": panel.directions[key]}
        for task, key in panel.main.items()
        if other is None or task not in other.main
    }


def _optimism(base: ModelRow, winner: ModelRow) -> float | None:
    """Returns what the winner gained on the base, on search items less on held-out items.

    Items of one split may be harder than those of the other for every model; that is no optimism.
    None: one of the four is not known.
    """
    gains = []
    for split in ("search", "report"):
        ours, its = winner.fitness(split), base.fitness(split)
        if ours is None or its is None:
            return None
        gains.append(float(np.mean(ours) - np.mean(its)))
    return gains[0] - gains[1]


def _space_name(space: Any) -> str:
    """Returns the class of a space, and of the one that it displaces."""
    name = type(space).__name__
    return f"{name} of {type(space.inner).__name__}" if isinstance(space, DisplacedSpace) else name


def _numbers(space: Any) -> int | None:
    """Returns how many independent numbers a noise of the space has; None: it has no noise."""
    numbers: int | None = getattr(space, "numbers", None)
    return numbers


def _terms(objective: Objective) -> list[dict[str, Any]] | None:
    """Returns how scores make a fitness: ``sum weight * (sign * score - base) / span``.

    Several objectives: equal weights, as their mean is what models are ranked by. None: they make
    it in another way.
    """
    if not isinstance(objective, BoundObjective) or not objective.linear:
        return None
    weights = objective.weights or [1 / len(objective.terms)] * len(objective.terms)
    return [
        {**asdict(term), "weight": weight}
        for term, weight in zip(objective.terms, weights, strict=True)
    ]


def _ties(objective: Objective) -> list[dict[str, Any]]:
    """Returns what is added for ties: ``sum weight * tanh((sign * score - base) / span)``."""
    ties = objective.ties if isinstance(objective, BoundObjective) else ()
    return [{**asdict(term), "weight": TIE / len(ties)} for term in ties]


def _label(strategy: Mapping[str, Any]) -> str:
    """Returns the class of a strategy, with the optimizer where it names one."""
    name = str(strategy["_target_"]).rsplit(".", 1)[-1]
    return f"{name}({strategy['optimizer']})" if "optimizer" in strategy else name


def _models(outcome: SearchOutcome) -> list[ModelRow]:
    """Returns a row per model, last the companion's inside the hull and the evolved one."""
    objective, inside = outcome.objective, outcome.inside
    report = {label: m.judged(objective) for label, m in (outcome.report or {}).items()}
    rows = []
    for label, scores in outcome.search.items():
        cells = [scores.judged(objective), *([report[label]] if label in report else [])]
        rows.append(ModelRow(label, scores.kind, {cell.split: cell for cell in cells}))
    if inside is not None:
        held_out = None if inside.report is None else inside.report.judged(objective)
        rows.append(_winner(IN_HULL, "in_hull", inside.winner, inside.scores, held_out))
    winner = outcome.finalists[0]
    record = next(r for r in outcome.result.records if r.id == winner.id)
    rows.append(_winner("evolved", "evolved", winner, record.scores, report.get("evolved")))
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
