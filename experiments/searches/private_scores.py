"""Scores of private items, in which an item that fails touches no other item."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from experiments.setup.ingredients import Ingredients
from merging.arrays import Vector
from merging.weights import Weights

ScorePanel: TypeAlias = Callable[[Panel], Mapping[str, Score]]
"""Scores one model on a panel; raises EvaluationError where a score is not finite."""


def robust_scores(ingredients: Ingredients, panel: Panel, weights: Weights) -> Mapping[str, Score]:
    """Returns the scores of `weights`, item by item where the panel as a whole fails.

    Raises:
        MergeError: the weights could not be computed, which depends on no item.
    """
    return robust(panel, lambda asked: ingredients.scorer(asked)(weights))


def robust(panel: Panel, score: ScorePanel) -> Mapping[str, Score]:
    """Returns the scores of a panel, item by item where it fails as a whole."""
    try:
        return score(panel)
    except EvaluationError:
        return item_by_item(panel, score)


def item_by_item(panel: Panel, score: ScorePanel) -> Mapping[str, Score]:
    """Returns the cases of a panel, every item asked by itself; NaN where it cannot be scored.

    The values of the scores are NaN: what is made of private items is made of the cases.
    """
    scores: dict[str, Score] = {}
    for task, evaluator in panel.evaluators.items():
        alone = [
            Panel(panel.split, {task: evaluator.subset([i])}) for i in range(len(evaluator.items))
        ]
        scored = [_attempt(partial(score, one)) for one in alone]
        for metric in evaluator.metrics:
            key = f"{task}/{metric}"
            scores[key] = Score(math.nan, np.array([_case(item, key) for item in scored]))
    return scores


def _attempt(score: Callable[[], Mapping[str, Score]]) -> Mapping[str, Score]:
    try:
        return score()
    except EvaluationError:
        return {}


def _case(scores: Mapping[str, Score], key: str) -> float:
    cases: Vector | None = scores[key].cases if key in scores else None
    return math.nan if cases is None or len(cases) != 1 else float(cases[0])
