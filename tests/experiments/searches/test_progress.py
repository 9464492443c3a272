from __future__ import annotations

import io
import logging

import numpy as np
import pytest

from experiments.searches.progress import Progress
from search.loop.history import Record
from search.loop.session import Budget

ONE = ["fitness"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(i: int, fitness: list[float] | None, seconds: float = 2.0, **more) -> Record:
    value = None if fitness is None else np.array(fitness)
    return Record(i, [0.0], {}, value, None if fitness else "failed", seconds=seconds, **more)


def test_remaining_time_is_the_median_times_what_is_left():
    progress = Progress(Budget(evaluations=10), ONE)
    for i, seconds in enumerate([2.0, 2.0, 90.0, 3.0, 2.0]):  # one stalled: no matter
        progress.update(record(i, [0.1], seconds), False)
    assert progress.remaining_s() == pytest.approx(5 * 2.0)


def test_too_few_evaluations_name_no_time():
    progress = Progress(Budget(evaluations=10), ONE)
    for i in range(2):
        progress.update(record(i, [0.1]), False)
        assert progress.remaining_s() is None
    assert "left" not in progress.line()


def test_seconds_of_the_budget_end_it_earlier():
    progress = Progress(Budget(evaluations=100, seconds=10.0), ONE)
    for i in range(4):
        progress.update(record(i, [0.1]), False)
    assert progress.remaining_s() == pytest.approx(2.0)
    progress.update(record(4, [0.1], 5.0), False)
    assert progress.remaining_s() == 0.0


def test_a_target_alone_has_no_known_end():
    progress = Progress(Budget(target=1.0), ONE)
    for i in range(5):
        progress.update(record(i, [0.1]), False)
    assert progress.remaining_s() is None
    assert progress.line() == "5 evaluations, best 0.1000"


def test_repeats_cost_nothing_and_are_not_counted():
    progress = Progress(Budget(evaluations=10), ONE)
    progress.update(record(0, [0.1]), False)
    progress.update(record(1, [0.1], 0.0, same_as=0), False)
    assert progress.line().startswith("1/10 evaluations")


def test_line_tells_best_and_failures():
    progress = Progress(Budget(evaluations=10), ONE)
    assert progress.line() == "0/10 evaluations, none scored yet"
    for i, fitness in enumerate([[0.1], None, [0.9], [0.2]]):
        progress.update(record(i, fitness), False)
    assert progress.line() == "4/10 evaluations, best 0.9000, 1 failed, about 12 s left"


def test_several_objectives_are_named():
    progress = Progress(Budget(evaluations=10), ["code", "prose"])
    progress.update(record(0, [0.1, 0.9]), False)
    progress.update(record(1, [0.5, 0.2]), False)
    assert "best code 0.5000 prose 0.9000" in progress.line()


def test_bar_is_drawn_on_a_terminal_only():
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        with Progress(Budget(evaluations=3), ONE, stream=stream) as progress:
            for i in range(3):
                progress.update(record(i, [0.25]), False)
    assert "3/3, best 0.2500" in screen.getvalue()
    assert file.getvalue() == ""


def test_bar_without_a_known_end_counts():
    screen = Terminal()
    with Progress(Budget(seconds=60.0), ONE, stream=screen) as progress:
        progress.update(record(0, [0.25]), False)
    assert "1 evaluations in" in screen.getvalue()


def test_log_lines_come_every_so_often(caplog):
    caplog.set_level(logging.INFO)
    now = iter(range(0, 1000, 10))
    progress = Progress(
        Budget(evaluations=10),
        ONE,
        every_s=25.0,
        stream=io.StringIO(),
        clock=lambda: float(next(now)),
    )
    with progress:
        for i in range(4):
            progress.update(record(i, [0.1]), replayed=True)  # in a moment: no line
        for i in range(4, 9):
            progress.update(record(i, [0.1]), replayed=False)
    lines = [r.message for r in caplog.records]
    assert 2 <= len(lines) <= 3
    assert lines[-1].startswith("9/10 evaluations, best 0.1000")
