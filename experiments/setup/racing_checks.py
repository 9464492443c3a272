"""Racing as configured, and what cannot go together with it: refused before the search."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluators.evaluator import Direction, Evaluator
from evaluators.panel import Panel
from evaluators.requests import (
    Classified,
    Classify,
    EvaluationError,
    Generate,
    Generated,
    Likelihood,
    Loglikelihood,
    Match,
    Matched,
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
    if (config.budget.evaluations or asked) < asked:
        raise ValueError(
            f"{given}: budget.evaluations={config.budget.evaluations} ends within the first "
            f"generation of {asked}, perhaps before anyone was asked all items: raise it to "
            f"{asked}, or {remedy}"
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
    classes: Mapping[str, tuple[str, ...]],
) -> None:
    """Refuses what rests on single items where an objective or its tasks are not made of them."""
    if racing is not None:
        given = f"racing {type(racing).__name__}"
        _check_cases(given, "leave racing= out", panel, objective, classes, some=True)
    if config.choose == "shrinkage":
        remedy = "choose=second_look"
        _check_cases("choose=shrinkage", remedy, panel, objective, classes, some=False)


def _check_cases(
    given: str,
    remedy: str,
    panel: Panel,
    objective: Any,
    classes: Mapping[str, tuple[str, ...]],
    *,
    some: bool,
) -> None:
    """Refuses tasks without per-item scores, which are found by scoring made-up answers.

    Args:
        some: they must be the same where only some items are asked.
    """
    bound = bound_on_made_up(objective, panel.directions, panel.main)
    if not isinstance(bound, BoundObjective) or bound.weights is None or not bound.linear:
        raise ValueError(
            f"{given} needs an objective that is a weighted mean of tasks, none of them capped: "
            f"choose objective=normalized or raw with objective.cap=null, or {remedy}"
        )
    for term in bound.terms:
        with suppress(EvaluationError):  # these answers cannot be scored, a model's may
            if not _item_by_item(panel.evaluators[term.task], term.key, classes, some=some):
                raise ValueError(
                    f"{given} compares candidates item by item, {term.key} is no mean over scores "
                    f"of single items: choose another metric with objective.metrics, or "
                    f"objective.prefer=null where that is it, or {remedy}"
                )


def _item_by_item(
    evaluator: Evaluator, key: str, classes: Mapping[str, tuple[str, ...]], *, some: bool
) -> bool:
    """Returns whether a score is the mean of its cases, and these are the same on a subset."""
    metric = key.partition("/")[2]
    answers = [_made_up(r, classes, n) for n, r in enumerate(evaluator.items.requests)]
    whole = evaluator.score(answers)[metric]
    if whole.cases is None or len(whole.cases) != len(evaluator.items):
        return False
    if not np.isclose(whole.cases.mean(), whole.value, rtol=1e-6):
        return False
    return not some or has_own_cases(evaluator, key, classes)


def has_own_cases(evaluator: Evaluator, key: str, classes: Mapping[str, tuple[str, ...]]) -> bool:
    """Returns whether an item's case follows from that item alone, as far as made-up answers say.

    Raises:
        EvaluationError: these answers cannot be scored.
    """
    metric = key.partition("/")[2]
    answers = [_made_up(r, classes, n) for n, r in enumerate(evaluator.items.requests)]
    whole = evaluator.score(answers)[metric]
    if whole.cases is None or not whole.own_cases:
        return False
    try:
        first = evaluator.subset([0])
    except ValueError:  # an item means nothing without others
        return False
    alone = first.score(answers[evaluator.items.spans[0]])[metric].cases
    return alone is not None and np.allclose(alone, whole.cases[:1], rtol=1e-6)


def bound_on_made_up(
    objective: Any, directions: Mapping[str, Direction], main: Mapping[str, str]
) -> Objective:
    """Returns the objective on made-up scores: a wrong metric is found without asking a model.

    All are above 0, so that they have ratios, and the expert is the better one.
    """
    better = {key: 2.0 if way == "maximize" else 1.0 for key, way in directions.items()}
    base = dict.fromkeys(directions, 1.5)
    bound: Objective = objective.bind(directions, main, base, {"expert": better})
    return bound


def _made_up(request: Request, classes: Mapping[str, tuple[str, ...]], number: int) -> Response:
    worse = number % 7  # so that answers differ
    if isinstance(request, Loglikelihood):
        return Likelihood(-1.0 - worse, False)
    if isinstance(request, Generate):
        return Generated("1")
    if isinstance(request, Classify):
        outputs = len(classes[request.head])
        shape = (outputs,) if request.positions is None else (len(request.positions), outputs)
        return Classified(np.cos(number + np.arange(np.prod(shape))).reshape(shape))
    if isinstance(request, Match):
        return Matched(np.cos(number + np.arange(request.entries)))
    zeros = np.zeros(len(request.tokens) - 1)
    return PerToken(zeros - 1.0 - worse, zeros - 1.0, zeros + 1.0)
