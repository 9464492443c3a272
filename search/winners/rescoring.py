"""Who can be compared where every generation was scored on items of its own: a few, once more."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluators.evaluator import Score
from search.loop.history import Record
from search.objective import Objective
from search.winners.selection import finalists, look


def pooled(records: Sequence[Record], k: int) -> list[Record]:
    """Returns at most `k` records with distinct genomes, by their rank within their generation.

    First the best of every generation, then the second best, and so on. Where a rank has more
    records than there is room for, half of the room goes to the latest generations, where a
    search that works has its best, and half is spread over those before: a search that has lost
    its way still shows where it was.

    Args:
        records: of one objective, each scored on the items of its generation.
        k: most records, at least 1.

    Returns:
        Records in the order of ids.
    """
    generations: dict[int | None, list[Record]] = {}
    for record in records:
        generations.setdefault(record.items, []).append(record)
    ranked = [finalists(several, len(several)) for several in generations.values()]
    chosen: dict[str, Record] = {}
    for rank in range(max(map(len, ranked), default=0)):
        of_rank = [several[rank] for several in ranked if len(several) > rank]
        level = {json.dumps(record.genome): record for record in of_rank}
        fresh = [record for genome, record in level.items() if genome not in chosen]
        for record in _spread(fresh, k - len(chosen)):
            chosen[json.dumps(record.genome)] = record
    return sorted(chosen.values(), key=lambda record: record.id)


def rescore(
    records: Sequence[Record],
    k: int,
    evaluate: Callable[[Record], Mapping[str, Score]],
    objective: Objective,
    path: Path,
) -> list[Record]:
    """Scores `pooled` records on all search items, and returns them with these scores.

    Where all fail there, they keep what they have from the items of their generations, beside
    why they failed, so that these decide.

    Args:
        objective: bound to the references on all search items.
        path: ``rescored.jsonl`` of the run; what it holds is not evaluated again.

    Raises:
        HistoryError: the file belongs to another search.
    """
    chosen = pooled(records, k)
    looked = look(chosen, evaluate, objective, path)
    if all(finalist.selection is None for finalist in looked):
        both = zip(chosen, looked, strict=True)
        return [replace(record, failure=finalist.failure) for record, finalist in both]
    return [
        replace(
            record,
            scores=finalist.scores,
            fitness=finalist.selection,
            failure=finalist.failure,
            cases=None,
            items=None,
        )
        for record, finalist in zip(chosen, looked, strict=True)
    ]


def _spread(records: Sequence[Record], room: int) -> list[Record]:
    """Returns at most `room` of the records, the later half of them without gaps."""
    if len(records) <= room:
        return list(records)
    latest = (room + 1) // 2
    before = len(records) - latest
    spread = np.linspace(0, before - 1, room - latest).round().astype(int)
    return [*(records[i] for i in spread), *records[before:]]
