"""What a benchmark finds: two figures from one run, taken in turns, and their ratio."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch


@dataclass(frozen=True)
class Measured:
    """One row of the results.

    Args:
        ours: our figure, or None where only the ratio is a figure.
        other: the peer's or the limit's.
        ratio: what the bar is set for.
        bar: what the ratio should reach; None: no bar on this device.
        at_most: whether the ratio should stay below the bar instead.
        note: the reason of a limit, or of a row that was skipped (`ratio` is NaN then).
    """

    measure: str
    ours: float | None
    other: float | None
    against: str
    unit: str
    ratio: float
    bar: float | None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None: there is none, or nothing was measured."""
        if self.bar is None or self.ratio != self.ratio:
            return None
        return self.ratio <= self.bar if self.at_most else self.ratio >= self.bar


def skipped(measure: str, against: str, reason: str) -> Measured:
    """Returns a row that says why there is no figure."""
    return Measured(measure, None, None, against, "", float("nan"), None, note=reason)


Timing: TypeAlias = tuple[float, float, float]
"""Seconds of ours, seconds of the other, other over ours."""


def in_turns(
    ours: Callable[[], Any],
    other: Callable[[], Any],
    *,
    rounds: int = 7,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Returns median seconds of both, and the median over rounds of ``other / ours``.

    Both are called once before, then in turns and in changing order, so that a machine that
    becomes slower meanwhile slows both.

    Args:
        wait: called before a clock is read; waits for an asynchronous device.
        clock: that of the processor is for work of one thread beside that of others.
    """
    ours(), other()
    times: dict[Callable[[], Any], list[float]] = {ours: [], other: []}
    for number in range(rounds):
        for work in (other, ours) if number % 2 else (ours, other):
            times[work].append(_seconds(work, wait, clock))
    ratios = [two / one for one, two in zip(times[ours], times[other], strict=True)]
    median = statistics.median
    return median(times[ours]), median(times[other]), median(ratios)


def waiting(device: torch.device) -> Callable[[], None]:
    """Returns what waits until the device has done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def profile(work: Callable[[], Any], most: int = 4) -> str:
    """Returns which of torch's operations take how much of the time that `work` takes.

    Args:
        work: called once more; what it allocates and warms up should be warm.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        work()
        microseconds = (time.perf_counter() - began) * 1e6
    events = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    named = [
        f"{event.key.removeprefix('aten::')} {event.count} x "
        f"{100 * event.self_cpu_time_total / microseconds:.0f} %"
        for event in events[:most]
    ]
    rest = sum(event.self_cpu_time_total for event in events) / microseconds
    return f"{', '.join(named)}, outside torch {100 * max(0.0, 1 - rest):.0f} %"


def _seconds(
    work: Callable[[], Any], wait: Callable[[], None], clock: Callable[[], float]
) -> float:
    wait()
    began = clock()
    work()
    wait()
    return clock() - began
