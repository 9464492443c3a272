"""The second look: who is invited, who wins, and that a killed look goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from search.loop.history import Record
from search.loop.session import SearchFailed
from search.normalisation import Term
from search.objective import BoundObjective
from search.winners.selection import finalists, second_look

ONE = BoundObjective((Term("t", "t/acc", 1.0),), (1.0,))
TWO = BoundObjective((Term("t", "t/acc", 1.0), Term("u", "u/acc", 1.0)), None)
Scores = Mapping[str, Score]


def record(i: int, *fitness: float, same_as: int | None = None) -> Record:
    value = np.array(fitness) if fitness else None
    return Record(i, [float(i)], {}, value, None if fitness else "failed", same_as)


def scores(**by_id: float) -> Callable[[Record], Scores]:
    def evaluate(candidate: Record) -> Scores:
        return {"t/acc": Score(by_id[f"c{candidate.id}"])}

    return evaluate


RECORDS = [record(3, 0.9), record(0, 0.5), record(1, 0.9), record(2), record(4, 0.9, same_as=1)]
RECORDS += [record(5, 0.7), record(6, 0.6)]


def test_finalists_are_the_best_distinct_ones() -> None:
    assert [r.id for r in finalists(RECORDS, 4)] == [1, 3, 5, 6]
    assert [r.id for r in finalists(RECORDS, 99)] == [1, 3, 5, 6, 0]
    assert finalists([record(0)], 3) == []
    with pytest.raises(ValueError, match="number of finalists must be at least 1, got 0"):
        finalists(RECORDS, 0)


def test_finalists_of_several_objectives_are_the_least_crowded_of_the_front() -> None:
    front = [record(0, 0.0, 1.0), record(1, 0.5, 0.6), record(2, 0.55, 0.55), record(3, 1.0, 0.0)]
    dominated = [record(4, 0.4, 0.5)]
    assert [r.id for r in finalists(front + dominated, 9)] == [0, 1, 2, 3]
    assert [r.id for r in finalists(front + dominated, 3)] == [0, 2, 3]
    assert [r.id for r in finalists(front, 2)] == [0, 3]


def test_the_winner_is_best_on_selection_items(tmp_path: Path) -> None:
    evaluate = scores(c1=0.6, c3=0.8, c5=0.8, c6=0.8)
    ranked = second_look(RECORDS, 4, evaluate, ONE, tmp_path / "finalists.jsonl")
    assert [f.id for f in ranked] == [3, 5, 6, 1]
    winner = ranked[0]
    assert (winner.search.tolist(), winner.scores) == ([0.9], {"t/acc": 0.8})
    assert winner.selection is not None
    assert winner.selection.tolist() == [0.8]
    tie = second_look(RECORDS, 2, scores(c1=0.8, c3=0.8), ONE, tmp_path / "tie.jsonl")
    assert [f.id for f in tie] == [1, 3]


def test_the_winner_of_several_objectives_has_the_best_mean(tmp_path: Path) -> None:
    def evaluate(candidate: Record) -> Scores:
        t, u = {0: (0.0, 1.0), 1: (0.6, 0.5), 3: (0.9, 0.2)}[candidate.id]
        return {"t/acc": Score(t), "u/acc": Score(u)}

    front = [record(0, 0.0, 1.0), record(1, 0.5, 0.6), record(3, 1.0, 0.0)]
    ranked = second_look(front, 3, evaluate, TWO, tmp_path / "finalists.jsonl")
    assert [f.id for f in ranked] == [1, 3, 0]


def test_failed_finalists_come_last(tmp_path: Path) -> None:
    def evaluate(candidate: Record) -> Scores:
        if candidate.id == 1:
            raise EvaluationError("out of memory")
        return {"t/acc": Score(-1.0 if candidate.id == 3 else float("nan"))}

    ranked = second_look(RECORDS, 3, evaluate, ONE, tmp_path / "finalists.jsonl")
    assert [(f.id, f.failure) for f in ranked] == [
        (3, None),
        (1, "out of memory"),
        (5, "t/acc is nan; the merged model is broken on this task"),
    ]
    again = second_look(RECORDS, 3, scores(), ONE, tmp_path / "finalists.jsonl")
    assert [(f.id, f.failure) for f in again] == [(f.id, f.failure) for f in ranked]


def test_where_all_finalists_fail_the_search_items_decide(tmp_path: Path) -> None:
    def evaluate(candidate: Record) -> Scores:
        raise EvaluationError("no finite score")

    ranked = second_look(RECORDS, 3, evaluate, ONE, tmp_path / "finalists.jsonl")
    assert [f.id for f in ranked] == [record.id for record in finalists(RECORDS, 3)]
    assert {(f.failure, f.selection) for f in ranked} == {("no finite score", None)}
    with pytest.raises(SearchFailed, match="no candidate with a fitness; there is no winner"):
        second_look([record(0)], 2, evaluate, ONE, tmp_path / "none.jsonl")


def test_a_killed_look_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    values = scores(c1=0.6, c3=0.8, c5=0.7, c6=0.5)
    whole = tmp_path / "whole.jsonl"
    second_look(RECORDS, 4, values, ONE, whole)
    for kill_at in range(4):
        path, done = tmp_path / f"{kill_at}.jsonl", list[int]()

        def evaluate(candidate: Record, done: list[int] = done, kill_at: int = kill_at) -> Scores:
            if len(done) == kill_at:
                raise KeyboardInterrupt
            done.append(candidate.id)
            return values(candidate)

        with pytest.raises(KeyboardInterrupt):
            second_look(RECORDS, 4, evaluate, ONE, path)
        with path.open("ab") as file:
            file.write(b'{"id": 6, "gen')
        ranked = second_look(RECORDS, 4, values, ONE, path)
        assert path.read_bytes() == whole.read_bytes()
        assert ranked[0].id == 3


def test_a_look_at_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "finalists.jsonl"
    second_look(RECORDS, 1, scores(c1=0.6), ONE, path)
    other = Record(1, [7.0], {}, np.array([0.9]))
    with pytest.raises(RuntimeError, match=r"finalists.jsonl: candidate 1 has another genome"):
        second_look([other], 1, scores(), ONE, path)
    doubled = BoundObjective((Term("t", "t/acc", 1.0, 0.0, 0.5),), (1.0,))
    with pytest.raises(RuntimeError, match=r"another genome or fitness .* remove it"):
        second_look(RECORDS, 1, scores(), doubled, path)
