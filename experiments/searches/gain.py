"""What a winner has over another model on the held-out items, with an interval over items."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compare.significance import LEVEL, GroupSample, difference
from experiments.runs.item_scores import ItemScores, read_item_scores
from experiments.runs.model_scores import ModelScores
from search.normalisation import Term
from search.objective import BoundObjective, Objective


def held_out_gain(
    run: Path, objective: Objective, winner: ModelScores | None, other: ModelScores | None
) -> dict[str, Any]:
    """Returns the difference of held-out fitness as JSON, with its paired interval over items.

    Items are weighted as the objective weights and normalises them; what breaks its ties, which
    no item has, is left out. Several objectives count alike.

    Args:
        run: holds the items' scores.
        objective: of the run.
        winner: on the held-out items; None: there are none.
        other: the same for the model that it is compared with.
    """
    gain: dict[str, Any] = dict.fromkeys(
        ("winner", "inside", "difference", "interval", "reason"), None
    )
    if winner is None or other is None:
        return {**gain, "reason": "there are no held-out items"}
    if failed := winner.failure or other.failure:
        return {**gain, "reason": failed}
    if isinstance(objective, BoundObjective):
        objective = replace(objective, ties=())
    first, second = (float(objective.fitness(r.scores).mean()) for r in (winner, other))
    gain |= {"winner": first, "inside": second, "difference": first - second}
    if not isinstance(objective, BoundObjective) or not objective.linear:
        return {**gain, "reason": "this objective is no weighted mean over items"}
    kept = read_item_scores(run, "report")
    pair = [kept[key] for m in (winner, other) if (key := (m.kind, m.name)) in kept]
    items = 0
    for term in objective.terms:
        if len(pair) < 2 or not all(term.key in scores.cases for scores in pair):
            return {**gain, "reason": f"{term.key} has no score per item"}
        if len(pair[0].cases[term.key]) < 2:
            return {**gain, "reason": f"{term.task} has a single item"}
        items += len(pair[0].cases[term.key])
    weights = objective.weights or [1 / len(objective.terms)] * len(objective.terms)
    samples = [
        _sample(fitness, scores, objective.terms, weights)
        for fitness, scores in zip((first, second), pair, strict=True)
    ]
    found = difference(*samples)
    ends = {"low": found.low, "high": found.high, "p": found.p}
    return {**gain, "interval": {**ends, "level": LEVEL, "items": items}}


def _sample(
    fitness: float, scores: ItemScores, terms: Sequence[Term], weights: Sequence[float]
) -> GroupSample:
    """Returns one model's items in the objective's units, higher is better."""
    rows = tuple(term.case_gains(scores.cases[term.key])[None] for term in terms)  # of one run
    return GroupSample((), np.array([fitness]), rows, tuple(weights))
