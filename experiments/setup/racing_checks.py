"""Racing as configured, and what cannot go together with it: refused before the search."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluators.evaluator import Direction
from evaluators.panel import Panel
from evaluators.requests import (
    Classified,
    Classify,
    EvaluationError,
    Generate,
    Generated,
    Likelihood,
    Loglikelihood,
    PerToken,
    Request,
    Response,
)
from search.objective import BoundObjective, Objective
from search.racing.racing import Racing


def open_racing(config: DictConfig) -> Racing | None:
    """Returns the rule of racing that a run's configuration asks for; None: none."""
    if not config.get("racing"):
        return None
    racing: Racing = instantiate(config.racing, _convert_="all")
    return racing


def check_racing(
    config: DictConfig, racing: Racing | None, strategy: str, asked: int, objectives: int
) -> None:
    """Refuses what cannot be raced.

    Args:
        asked: how many candidates its first generation has.
    """
    if racing is None:
        return
    given, remedy = f"racing {type(racing).__name__}", "leave racing= out"
    if config.common_items is not None:
        raise ValueError(
            f"{given}: common_items={config.common_items} gives every generation items of its "
            f"own, a race compares generations on the same items: leave one of both out"
        )
    if objectives > 1:
        raise ValueError(
            f"{given}: candidates are raced by one number, the objective has {objectives}: choose "
            f"an objective with one, or {remedy}"
        )
    least = min(asked, int(config.strategy.get("popsize") or asked))
    if least < racing.least_candidates:
        raise ValueError(
            f"{given}: {strategy} asks for {least} candidate at a time, which has none to race "
            f"with: set racing.against_best=true, or {remedy}"
        )
    if config.get("asynchronous"):
        raise ValueError(
            f"{given}: asynchronous=true tells every outcome as it comes, a race is decided by "
            f"generations: leave one of both out"
        )


def check_cases(
    config: DictConfig,
    racing: Racing | None,
    panel: Panel,
    objective: Any,
    classes: Mapping[str, int],
) -> None:
    """Refuses what rests on single items where an objective or its tasks are not made of them."""
    if racing is not None:
        given = f"racing {type(racing).__name__}"
        _check_cases(given, "leave racing= out", panel, objective, classes)
    if config.choose == "shrinkage":
        _check_cases("choose=shrinkage", "choose=second_look", panel, objective, classes)


def _check_cases(
    given: str, remedy: str, panel: Panel, objective: Any, classes: Mapping[str, int]
) -> None:
    """Refuses tasks without per-item scores, which are found by scoring made-up answers."""
    bound = bound_on_made_up(objective, panel.directions, panel.main)
    if not isinstance(bound, BoundObjective) or bound.weights is None or not bound.linear:
        raise ValueError(
            f"{given} needs an objective that is a weighted mean of tasks, none of them capped: "
            f"choose objective=normalized or raw with objective.cap=null, or {remedy}"
        )
    for term in bound.terms:
        evaluator = panel.evaluators[term.task]
        answers = [_made_up(request, classes) for request in evaluator.items.requests]
        with suppress(EvaluationError):  # these answers cannot be scored, a model's may
            cases = evaluator.score(answers)[term.key.partition("/")[2]].cases
            if cases is None or len(cases) != len(evaluator.items):
                raise ValueError(
                    f"{given} compares candidates item by item, {term.key} has no score of a "
                    f"single item: choose another metric with objective.metrics, or {remedy}"
                )


def bound_on_made_up(
    objective: Any, directions: Mapping[str, Direction], main: Mapping[str, str]
) -> Objective:
    """Returns the objective on made-up scores: a wrong metric is found without asking a model."""
    better = {key: 1.0 if way == "maximize" else -1.0 for key, way in directions.items()}
    base = dict.fromkeys(directions, 0.0)
    bound: Objective = objective.bind(directions, main, base, {"expert": better})
    return bound


def _made_up(request: Request, classes: Mapping[str, int]) -> Response:
    if isinstance(request, Loglikelihood):
        return Likelihood(-1.0, False)
    if isinstance(request, Generate):
        return Generated("1")
    if isinstance(request, Classify):
        return Classified(np.zeros(classes[request.head]))
    zeros = np.zeros(len(request.tokens) - 1)
    return PerToken(zeros - 1.0, zeros - 1.0, zeros + 1.0)
