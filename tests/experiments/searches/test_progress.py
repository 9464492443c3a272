from __future__ import annotations

import numpy as np
import pytest

from experiments.searches.progress import Progress
from search.loop.history import Record
from search.loop.session import Budget


def record(i: int, fitness: list[float] | None, seconds: float = 2.0) -> Record:
    value = None if fitness is None else np.array(fitness)
    return Record(i, [0.0], {}, value, None if fitness else "failed", seconds=seconds)


def test_remaining_time_is_the_median_times_what_is_left():
    progress = Progress(Budget(evaluations=10), ["fitness"])
    for i, seconds in enumerate([2.0, 2.0, 90.0, 3.0, 2.0]):  # one stalled: no matter
        progress.add(record(i, [0.1], seconds))
    assert progress.remaining_s() == pytest.approx(5 * 2.0)


def test_too_few_evaluations_name_no_time():
    progress = Progress(Budget(evaluations=10), ["fitness"])
    for i in range(2):
        progress.add(record(i, [0.1]))
        assert progress.remaining_s() is None
    assert "left" not in progress.note()


def test_seconds_of_the_budget_end_it_earlier():
    progress = Progress(Budget(evaluations=100, seconds=10.0), ["fitness"])
    for i in range(4):
        progress.add(record(i, [0.1]))
    assert progress.remaining_s() == pytest.approx(2.0)
    progress.add(record(4, [0.1], 5.0))
    assert progress.remaining_s() == 0.0


def test_a_target_alone_has_no_known_end():
    progress = Progress(Budget(target=1.0), ["fitness"])
    for i in range(5):
        progress.add(record(i, [0.1]))
    assert progress.remaining_s() is None
    assert progress.note() == "best 0.1000"


def test_the_note_tells_best_and_failures():
    progress = Progress(Budget(evaluations=10), ["fitness"])
    assert progress.note() == "none scored yet"
    for i, fitness in enumerate([[0.1], None, [0.9], [0.2]]):
        progress.add(record(i, fitness))
    assert progress.note() == "best 0.9000, 1 failed, about 12 s left"


def test_the_best_is_told_against_the_best_static_merge():
    progress = Progress(Budget(evaluations=10), ["mean"], ("ties", 0.75))
    progress.add(record(0, [0.9]))
    assert progress.note() == "best 0.9000 against 0.7500 of ties"


def test_several_objectives_are_named():
    progress = Progress(Budget(evaluations=10), ["code", "prose"])
    progress.add(record(0, [0.1, 0.9]))
    progress.add(record(1, [0.5, 0.2]))
    assert "best code 0.5000 prose 0.9000" in progress.note()
