"""Who is scored once more where generations had items of their own, and that it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from experiments.searches.notes import unscored_again
from search.loop.history import HistoryError, Record
from search.normalisation import Term
from search.objective import BoundObjective
from search.winners.rescoring import pooled, rescore
from search.winners.selection import finalists

ONE = BoundObjective((Term("t", "t/acc", 1.0),), (1.0,))


def generations(*fitness: list[float | None]) -> list[Record]:
    """Records with a genome of their own each, a list of fitness for every generation."""
    records: list[Record] = []
    for number, values in enumerate(fitness):
        for value in values:
            own = None if value is None else np.array([value])
            failure = "failed" if value is None else None
            records.append(Record(len(records), [len(records)], {}, own, failure, items=number))
    return records


def ids(records: list[Record]) -> list[int]:
    return [record.id for record in records]


def test_rank_within_a_generation_decides_and_not_how_easy_its_items_were() -> None:
    records = generations([0.1, 0.3, 0.2], [9.1, 9.2, 9.3], [None, None], [0.0, None])
    assert ids(pooled(records, 3)) == [1, 5, 8]
    assert ids(pooled(records, 5)) == [1, 2, 4, 5, 8]
    assert ids(pooled(records, 99)) == [0, 1, 2, 3, 4, 5, 8]
    assert pooled(generations([None]), 3) == pooled([], 3) == []


def test_half_of_the_room_is_for_the_latest_and_half_is_spread() -> None:
    records = generations(*[[1.0, 0.0]] * 20)
    best = [record.id // 2 for record in pooled(records, 6)]
    assert best == [0, 8, 16, 17, 18, 19]
    assert ids(pooled(records, 1)) == [38]
    second = pooled(records, 23)
    assert [r.id for r in second if r.id % 2] == [1, 37, 39]
    assert len(second) == 23


def test_a_genome_has_one_place() -> None:
    records = generations([0.1, 0.2], [0.3], [0.4, 0.5])
    same = [
        Record(r.id, ["x"] if r.id in (1, 2, 3) else r.genome, {}, r.fitness, items=r.items)
        for r in records
    ]
    repeat = Record(5, ["y"], {}, np.array([0.9]), same_as=4, items=2)
    assert ids(pooled([*same, repeat], 9)) == [0, 2, 4]


def test_scored_once_on_all_items_and_not_again(tmp_path: Path) -> None:
    records = generations([0.1, 0.3], [9.1, 9.2], [0.0, 0.5])
    asked = []

    def evaluate(record: Record) -> Mapping[str, Score]:
        asked.append(record.id)
        if record.id == 5:
            raise EvaluationError("too far")
        return {"t/acc": Score(1 / (1 + record.id), np.ones(3))}

    again = rescore(records, 3, evaluate, ONE, tmp_path / "rescored.jsonl")
    assert asked == ids(again) == [1, 3, 5]
    assert [None if r.fitness is None else r.fitness.tolist() for r in again] == [
        [0.5],
        [0.25],
        None,
    ]
    assert [r.items for r in again] == [None] * 3
    assert again[0].scores == {"t/acc": 0.5}
    assert again[2].failure == "too far"
    assert ids(finalists(again, 2)) == [1, 3]
    content = (tmp_path / "rescored.jsonl").read_bytes()
    (tmp_path / "rescored.jsonl").write_bytes(content[: content.index(b"\n") + 20])
    rescore(records, 3, evaluate, ONE, tmp_path / "rescored.jsonl")
    assert asked == [1, 3, 5, 3, 5]
    assert (tmp_path / "rescored.jsonl").read_bytes() == content
    other = BoundObjective((Term("t", "t/acc", 1.0, base=1.0),), (1.0,))
    with pytest.raises(HistoryError, match=r"rescored.jsonl: candidate 1 has another genome or"):
        rescore(records, 3, evaluate, other, tmp_path / "rescored.jsonl")


def test_where_none_could_be_scored_the_generations_decide(tmp_path: Path) -> None:
    def evaluate(record: Record) -> Mapping[str, Score]:
        raise EvaluationError("too far")

    kept = rescore(generations([0.5], [0.1]), 4, evaluate, ONE, tmp_path / "rescored.jsonl")
    assert [(r.fitness, r.items, r.failure) for r in kept] == [
        ([0.5], 0, "too far"),
        ([0.1], 1, "too far"),
    ]
    assert ids(finalists(kept, 1)) == [0]
    (note,) = unscored_again(kept)
    assert note.startswith("all 2 candidates that were scored again on all search items failed")
    assert unscored_again(generations([0.5, None])) == []
