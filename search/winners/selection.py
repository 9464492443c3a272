"""How a winner is named: by a second look at the best few on other items, or by shrinkage."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.evaluator import Score
from merging.arrays import Vector
from search.checks import check_at_least
from search.loop import jsonl
from search.loop.evaluation import attempt
from search.loop.history import HistoryError, Record
from search.loop.session import SearchFailed
from search.objective import Objective
from search.ranking import crowding, non_dominated
from search.winners.shrinkage import Strata, shrink


@dataclass(frozen=True, eq=False)
class Finalist:
    """A candidate that was looked at twice.

    Args:
        search: fitness on search items, ``(objectives,)``.
        scores: on selection items, by ``task/metric``.
        selection: fitness on selection items; None: failed there.
        failure: why it failed there; None: it did not.
        shrunken: estimate of its true fitness from the search items alone; None: not made.
    """

    id: int
    genome: Any
    search: Vector
    scores: Mapping[str, float]
    selection: Vector | None
    failure: str | None = None
    shrunken: float | None = None


def finalist_of(record: Record, shrunken: float | None = None) -> Finalist:
    """Returns a record with a fitness as a finalist that was not looked at again."""
    assert record.fitness is not None
    return Finalist(record.id, record.genome, record.fitness, {}, None, shrunken=shrunken)


def finalists(records: Sequence[Record], k: int, keeps: Collection[int] = ()) -> list[Record]:
    """Returns at most `k` records with distinct genomes, best first, and after them `keeps`.

    One objective: the highest fitness, the lower id where equal. Several: the non-dominated ones,
    in the order of ids; more than `k` of them are thinned to the least crowded.

    Args:
        keeps: ids of records that are among them in any case, where they have a fitness.
    """
    check_at_least(1, "the number of ", finalists=k)
    scored: list[tuple[Record, Vector]] = [
        (record, record.fitness)
        for record in sorted(records, key=lambda record: record.id)
        if record.fitness is not None and record.same_as is None and record.asked is None
    ]
    if not scored:
        return []
    if len(scored[0][1]) == 1:
        ranked = [r for r, _ in sorted(scored, key=lambda pair: (-pair[1][0], pair[0].id))]
        return ranked[:k] + [r for r in ranked[k:] if r.id in keeps]
    front = [scored[i] for i in non_dominated([fitness for _, fitness in scored])]
    while len(front) > k:
        crowded = crowding(np.array([fitness for _, fitness in front]))
        del front[len(front) - 1 - int(np.argmin(crowded[::-1]))]
    known = {record.id for record, _ in front}
    others = [record for record, _ in scored if record.id in keeps and record.id not in known]
    return [*(record for record, _ in front), *others]


def shrunken_finalists(records: Sequence[Record], k: int, strata: Strata) -> list[Finalist]:
    """Returns the `k` records with the highest shrunken fitness, the winner first.

    No further item is read.

    Raises:
        SearchFailed: no record has a fitness.
        ValueError: `k` is below 1, or as `shrink` raises.
    """
    check_at_least(1, "the number of ", finalists=k)
    full = [record for record in records if record.asked is None]
    estimates = {i: estimate.value for i, estimate in shrink(full, strata).items()}
    if not estimates:
        raise SearchFailed("the search has no candidate with a fitness; there is no winner")
    known = {record.id: record for record in full}
    best = sorted(estimates, key=lambda number: (-estimates[number], number))[:k]
    return [finalist_of(known[number], estimates[number]) for number in best]


def second_look(
    records: Sequence[Record],
    k: int,
    evaluate: Callable[[Record], Mapping[str, Score]],
    objective: Objective,
    path: Path,
    keeps: Collection[int] = (),
) -> list[Finalist]:
    """Scores the best `k` records on selection items and returns them ranked, the winner first.

    The winner has the best fitness on selection items (several objectives: the best mean of
    them); of equals the one with the better fitness on search items, then the lower id. Failed
    finalists come last, so that where all have failed the search items decide.

    Args:
        objective: the search's, bound to the references on search items.
        path: ``finalists.jsonl`` of the run; finalists that it holds are not evaluated again.
        keeps: ids of records that are scored as well, whatever their rank.

    Raises:
        HistoryError: the file belongs to another search.
        SearchFailed: no record has a fitness.
    """
    looked = look(finalists(records, k, keeps), evaluate, objective, path)
    ranked = sorted(looked, key=_rank)
    if not ranked:
        raise SearchFailed("the search has no candidate with a fitness; there is no winner")
    return ranked


def look(
    records: Sequence[Record],
    evaluate: Callable[[Record], Mapping[str, Score]],
    objective: Objective,
    path: Path,
) -> list[Finalist]:
    """Scores records once more, on other items; what the file holds is not evaluated again."""
    known = {line["id"]: line for line in jsonl.read(path)}
    looked = []
    for record in records:
        line = known.get(record.id)
        if line is None:
            line = _score(record, evaluate, objective)
            jsonl.append(path, line)
        looked.append(_finalist(record, line, objective, path))
    return looked


def _score(
    record: Record, evaluate: Callable[[Record], Mapping[str, Score]], objective: Objective
) -> dict[str, Any]:
    values: dict[str, float] = {}
    fitness: list[float] | None = None
    with attempt() as tried:
        values = {name: float(score.value) for name, score in evaluate(record).items()}
        fitness = objective.fitness(values).tolist()
    scores = {name: value if np.isfinite(value) else None for name, value in values.items()}
    line = {"id": record.id, "genome": record.genome, "scores": scores}
    return {**line, "fitness": fitness, "failure": tried.failure}


def _finalist(record: Record, line: dict[str, Any], objective: Objective, path: Path) -> Finalist:
    assert record.fitness is not None
    scores = {k: float("nan") if v is None else v for k, v in line["scores"].items()}
    selection = None if line["fitness"] is None else np.array(line["fitness"], np.float64)
    same = json.dumps(line["genome"]) == json.dumps(record.genome)
    if not same or (
        selection is not None and not np.array_equal(objective.fitness(scores), selection)
    ):
        raise HistoryError(
            f"{path}: candidate {record.id} has another genome or fitness than in this search; "
            "the file does not belong to it: remove it"
        )
    return Finalist(record.id, record.genome, record.fitness, scores, selection, line["failure"])


def _rank(finalist: Finalist) -> tuple[bool, float, float, int]:
    failed = finalist.selection is None
    selection = 0.0 if finalist.selection is None else float(np.mean(finalist.selection))
    return failed, -selection, -float(np.mean(finalist.search)), finalist.id
