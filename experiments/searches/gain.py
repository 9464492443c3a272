"""What a winner has over another model on the held-out items, with an interval over items."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs.item_scores import ItemScores, read_item_scores
from experiments.runs.model_scores import ModelScores
from search.normalisation import Term
from search.objective import BoundObjective, Objective
from search.winners.bootstrap import paired_bootstrap


def held_out_gain(
    run: Path, objective: Objective, winner: ModelScores | None, other: ModelScores | None
) -> dict[str, Any]:
    """Returns the difference of held-out fitness as JSON, with its paired bootstrap interval.

    Items are drawn within tasks and weighted as the objective weights and normalises them. The
    interval is that of ``sum_t weight_t * mean_i (sign * gap_ti) / span_t``, over the mean of a
    task's items. Most scores are that mean; one that is a ratio over all items (bits per byte
    weighs documents by their length) is named in ``unequal``, and its interval says what a mean
    of the documents would gain. Several objectives count alike.

    Args:
        run: holds the items' scores.
        objective: of the run.
        winner: on the held-out items; None: there are none.
        other: the same for the model that it is compared with.
    """
    gain: dict[str, Any] = dict.fromkeys(
        ("winner", "inside", "difference", "interval", "reason"), None
    )
    gain["unequal"] = []
    if winner is None or other is None:
        return {**gain, "reason": "there are no held-out items"}
    if failed := winner.failure or other.failure:
        return {**gain, "reason": failed}
    first, second = (float(objective.fitness(r.scores).mean()) for r in (winner, other))
    gain |= {"winner": first, "inside": second, "difference": first - second}
    if not isinstance(objective, BoundObjective) or not objective.linear:
        return {**gain, "reason": "this objective is no weighted mean over items"}
    items = read_item_scores(run, "report")
    pair = [items[key] for m in (winner, other) if (key := (m.kind, m.name)) in items]
    for term in objective.terms:
        if len(pair) < 2 or not all(term.key in scores.cases for scores in pair):
            return {**gain, "reason": f"{term.key} has no score per item"}
    cases = [[t.case_gains(scores.cases[t.key]) for t in objective.terms] for scores in pair]
    for term, of_task in zip(objective.terms, cases[0], strict=True):
        if len(of_task) < 2:
            return {**gain, "reason": f"{term.task} has a single item"}
    weights = objective.weights or [1 / len(objective.terms)] * len(objective.terms)
    gain["interval"] = asdict(paired_bootstrap(*cases, weights=weights))
    gain["unequal"] = _unequal(objective.terms, pair, (winner.scores, other.scores))
    return gain


def _unequal(
    terms: Sequence[Term], pair: Sequence[ItemScores], values: Sequence[Mapping[str, float]]
) -> list[str]:
    """Returns the tasks whose score is not the mean of their items."""
    return [
        term.task
        for term in terms
        if any(
            abs(float(own.cases[term.key].mean()) - value[term.key])
            > 1e-6 * max(1.0, abs(value[term.key]))
            for own, value in zip(pair, values, strict=True)
        )
    ]
