"""A bar on a terminal, plain lines elsewhere, and not many of them."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

from experiments.runs.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_plain_line_at_most_every_ten_seconds() -> None:
    log, clock = io.StringIO(), Clock()
    with ProgressBar(50, "training base", "window", stream=log, clock=clock) as bar:
        for step in range(50):
            clock.now += 0.5
            bar.update(note=f"loss {step / 100:.2f}")
    assert log.getvalue().splitlines() == [
        "training base: 20/50 windows, loss 0.19, about 00:15 left",
        "training base: 40/50 windows, loss 0.39, about 00:05 left",
        "training base: 50/50 windows, loss 0.49",
    ]
    assert "\r" not in log.getvalue()


def test_short_work_says_nothing_in_a_log() -> None:
    log = io.StringIO()
    with ProgressBar(2, "merging", "tensor", stream=log) as bar:
        bar.update(2)
    assert log.getvalue() == ""


def test_work_of_seconds_has_one_line_in_a_log() -> None:
    for seconds, lines in ((1.9, 0), (2.1, 1)):
        log, clock = io.StringIO(), Clock()
        with ProgressBar(2, "merging", "tensor", stream=log, clock=clock) as bar:
            bar.update()
            clock.now = seconds
            bar.update()
        assert log.getvalue() == "merging: 2/2 tensors\n" * lines


def test_the_last_line_is_not_said_twice() -> None:
    log, clock = io.StringIO(), Clock()
    with ProgressBar(2, "merging", "tensor", stream=log, clock=clock) as bar:
        clock.now = 20.0
        bar.update(2)
    assert log.getvalue() == "merging: 2/2 tensors\n"


def test_a_terminal_gets_a_bar() -> None:
    screen = Terminal()
    with ProgressBar(3, "base", "step", leave=True, stream=screen) as bar:
        bar.update(note="loss 1.00")
        bar.describe("expert")
        bar.update(2)
    assert "expert: 100%" in screen.getvalue()
    assert "\r" in screen.getvalue()


def test_hidden_progress_writes_nothing_anywhere() -> None:
    for stream in (Terminal(), io.StringIO()):
        clock = Clock()
        with ProgressBar(2, "x", "step", shown=False, stream=stream, clock=clock) as bar:
            clock.now = 60.0
            bar.update()
        assert stream.getvalue() == ""


def test_work_whose_notes_tell_the_time_left_has_no_second_estimate() -> None:
    for total, shown, line in ((4, "1/4, 9 s left", "1/4"), (None, "1 steps in", "1")):
        screen, log, clock = Terminal(), io.StringIO(), Clock()
        for stream in (screen, log):
            bar = ProgressBar(
                total, "x", "step", leave=True, estimates=False, stream=stream, clock=clock
            )
            with bar:
                clock.now += 20.0
                bar.update(note="9 s left")
        assert shown in screen.getvalue()
        assert log.getvalue() == f"x: {line} steps, 9 s left\n"


def test_a_log_hears_of_work_whose_first_unit_takes_long() -> None:
    log = io.StringIO()
    with ProgressBar(3, "references", "model", stream=log, silent_s=0.05):
        while log.getvalue().count("\n") < 2:
            time.sleep(0.01)
    first, second, *_ = log.getvalue().splitlines()
    assert first == second == "references: 0/3 models, 00:00 so far"


def test_any_thread_may_count() -> None:
    log, clock = io.StringIO(), Clock()
    with ProgressBar(4000, "reading", "megabyte", stream=log, clock=clock) as bar:
        with ThreadPoolExecutor(8) as each:
            list(each.map(lambda _: bar.update(), range(4000)))
        clock.now = 5.0
    assert log.getvalue() == "reading: 4000/4000 megabytes\n"
