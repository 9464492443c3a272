"""What is published with a merge: its card, and the recipe as others may read it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.evaluator import Direction
from evaluators.intervals import mean_interval, share_interval
from evaluators.panel import Panel
from experiments.reports.card_head import HeldOutFacts, Parents
from experiments.reports.model_card import model_card
from experiments.runs.files import Json
from experiments.runs.item_scores import read_item_scores
from experiments.runs.model_scores import models_of
from experiments.runs.sources import source_and_hash
from experiments.setup.ingredients import Ingredients
from merging.arrays import Vector
from merging.recipe import Recipe


def card_of(ingredients: Ingredients, summary: Json, recipe: Json, run: Path) -> str:
    """Returns the card of a search's winner.

    Args:
        run: holds the items' scores, which the intervals are made of.
    """
    panel = ingredients.panels.get("report")
    held_out = None if panel is None else _held_out(panel, summary, run)
    return model_card(summary, recipe, Parents.of(ingredients.pool), held_out)


def _held_out(panel: Panel, summary: Json, run: Path) -> HeldOutFacts:
    stated: dict[str, Any] = {}
    for model in models_of(summary):
        if model.kind == "evolved" and (cell := model.scores.get("report")) is not None:
            stated = dict(cell.intervals)
    own = read_item_scores(run, "report").get(("evolved", "evolved"))
    for metric, cases in {} if own is None else own.cases.items():
        if (
            metric not in stated
            and (ends := interval(cases, panel.directions[metric])) is not None
        ):
            stated[metric] = ends
    kinds = {name: getattr(task, "hub_task", None) for name, task in panel.evaluators.items()}
    datasets = {name: getattr(task, "dataset", None) for name, task in panel.evaluators.items()}
    return HeldOutFacts(
        kinds={name: kind for name, kind in kinds.items() if kind},
        datasets={name: dataset for name, dataset in datasets.items() if dataset},
        intervals=stated,
        items={name: len(task.items) for name, task in panel.evaluators.items()},
    )


def interval(cases: Vector, direction: Direction) -> tuple[float, float] | None:
    """Returns the 95 % interval of the mean of ``(items,)``; None where they tell none.

    Of items that are right or wrong it is the exact one of a share. Its ends keep to the bounds
    that all items do: a metric to maximize that is within [0, 1] is a share.
    """
    if np.isin(cases, (0, 1)).all():
        return share_interval(int(cases.sum()), len(cases))
    if (cases <= 0).all():
        return mean_interval(cases, -np.inf, 0.0)
    low = 0.0 if (cases >= 0).all() else -np.inf
    share = direction == "maximize" and low == 0 and (cases <= 1).all()
    return mean_interval(cases, low, 1.0 if share else np.inf)


def shown_recipe(recipe: Recipe) -> Recipe:
    """Returns a recipe for readers elsewhere: sources are ids on the Hub, or folders' names."""
    base, *experts = (
        replace(each, source=source_and_hash(vars(each))[0])
        for each in recipe.ingredients.values()
    )
    return replace(recipe, base=base, experts=dict(zip(recipe.experts, experts, strict=True)))
