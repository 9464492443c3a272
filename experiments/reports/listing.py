"""Runs at a glance: what each has come to, from its files alone."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.reports.table import duration, number
from experiments.runs.directory import RunLocked, locked
from experiments.runs.files import read_json, read_lines

_HEAD = ("run", "state", "evaluations", "fitness", "time")


def listing(directory: Path) -> list[str]:
    """Returns a table of the runs below `directory`, a line each; none where there is no run.

    Fitness: the winner's; of a run without one its best candidate's on the search items, in
    brackets, the mean of several objectives.
    """
    rows = [_row(directory, run) for run in _runs(directory)]
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    lines = []
    for name, *cells in [_HEAD, *rows]:
        others = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *others]))
    return lines


def _runs(directory: Path) -> Iterator[Path]:
    """Yields the runs below a directory, itself included, but no run inside of another."""
    if (directory / "config.yaml").is_file() and (directory / "environment.json").is_file():
        yield directory
    elif directory.is_dir():
        for entry in sorted(directory.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from _runs(entry)


def _row(directory: Path, run: Path) -> tuple[str, ...]:
    name = run.name if run == directory else str(run.relative_to(directory))
    try:
        return name, *_cells(run)
    except (ValueError, KeyError, TypeError):
        return name, "damaged", "-", "-", "-"


def _cells(run: Path) -> tuple[str, ...]:
    if (run / "summary.json").is_file() and (run / "report.html").is_file():
        summary = read_json(run / "summary.json")
        seconds = summary["seconds"]
        time = "-" if seconds is None else duration(seconds)
        return "finished", str(summary["evaluations"]), number(summary["fitness"]), time
    history = _lines(run / "history.jsonl")
    scored = [line["fitness"] for line in history if line["fitness"] is not None]
    best = max((sum(each) / len(each) for each in scored), default=None)
    timed = [line["seconds"] for line in _lines(run / "timing.jsonl")]
    return (
        "running" if _is_running(run) else "stopped",
        str(sum(line["same_as"] is None for line in history)),
        "-" if best is None else f"({number(best)})",
        duration(sum(timed)) if timed else "-",
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.is_file() else []


def _is_running(run: Path) -> bool:
    """Whether a process holds the run's lock."""
    if (run / "run.lock").exists():
        with suppress(OSError):  # of somebody else's run, which can't be written
            try:
                with locked(run):
                    pass
            except RunLocked:
                return True
    return False
