"""Whole runs that can be disturbed: killed, on a disk that fills, or with faults that pass."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.forking import FORKING

SAME = (
    "history.jsonl",
    "cases.jsonl",
    "references.jsonl",
    "search_cases.jsonl",
    "selection_cases.jsonl",
    "report_cases.jsonl",
    "finalists.jsonl",
    "recipe.json",
    "certificate.json",
    "summary.json",
    "report.html",
    "model/config.json",
    "model/model.safetensors",
    "model/README.md",
    "in_hull/history.jsonl",
    "in_hull/finalists.jsonl",
    "in_hull/recipe.json",
)
_VARIES = (  # what two undisturbed runs do not have in common
    rb'"(seconds|peak_memory_bytes)": [\d.e+-]+',
    rb"[\d.]+ (s|min), median [\d.]+ s each",
    rb"[\d.]+ GB",
)
CALLS = {
    "write": ("evaluators.engine.resident", "Resident", "write"),
    "ask": ("evaluators.engine.engine", "Engine", "run"),
    "fsync": ("os", None, "fsync"),
    "replace": ("os", None, "replace"),
}
ERRORS: dict[str, Callable[[], Exception]] = {
    "memory": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"),
    "input/output": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "connection": lambda: ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
}


@dataclass(frozen=True)
class Fault:
    """An error that passes: so many calls of one kind raise it, one after the other.

    Args:
        call: a key of `CALLS`.
        phase: see `phase_of`; calls are counted from its beginning on.
        first: number of the first call that fails.
        calls: how many fail.
        error: a key of `ERRORS`.
    """

    call: str
    phase: str
    first: int
    calls: int
    error: str


def start(arguments: list[str], out: Path, fault: Fault | None = None) -> BaseProcess:
    """Starts a search into `out` in a process of its own; what it prints goes to a file beside."""
    line = ["search", *arguments, f"out={out}"]
    process = FORKING.Process(target=_main, args=(line, out, fault))
    process.start()
    return process


def finish(arguments: list[str], out: Path, fault: Fault | None = None) -> int | None:
    """Runs a search into `out` to its end; returns the exit status."""
    process = start(arguments, out, fault)
    process.join()
    return process.exitcode


def printed(out: Path) -> str:
    """Returns all that the starts of a run have printed."""
    return out.with_suffix(".log").read_text()


def _main(line: list[str], out: Path, fault: Fault | None) -> None:
    os.chdir(out.parent)
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from experiments import cli

    if fault is not None:
        from evaluators import tries

        tries.PAUSES_S = (0.0,) * len(tries.PAUSES_S)
        _inject(fault, out)
    sys.exit(cli.main(line))


def _inject(fault: Fault, out: Path) -> None:
    module, owner, name = CALLS[fault.call]
    place: Any = importlib.import_module(module)
    place = place if owner is None else getattr(place, owner)
    original = getattr(place, name)
    seen = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        if seen or phase_of(out) == fault.phase:
            seen += 1
            if fault.first < seen <= fault.first + fault.calls:
                out.with_suffix(".fault").touch()
                raise ERRORS[fault.error]()
        return original(*arguments, **options)

    setattr(place, name, failing)


def phase_of(out: Path) -> str:
    """Returns what a run is at, by its files."""
    for name, phase in (
        ("summary.json", "report"),
        ("in_hull/recipe.json", "held-out"),
        ("in_hull", "in-hull"),
        ("recipe.json", "saving"),
        ("finalists.jsonl", "second look"),
        ("history.jsonl", "search"),
        ("references.jsonl", "references"),
    ):
        if (out / name).exists():
            return phase
    return "start"


def events(out: Path) -> int:
    """Returns how much a run has written: its lines and its files."""
    count = 0
    for folder, _, names in os.walk(out):  # which minds nothing that vanishes meanwhile
        shown = [name for name in names if not name.startswith(".")]
        logs = [Path(folder, name) for name in shown if name.endswith(".jsonl")]
        count += len(shown) + sum(log.read_bytes().count(b"\n") for log in logs)
    return count


def was_hit(out: Path) -> bool:
    """Returns whether a fault was met, and forgets it."""
    hit = out.with_suffix(".fault").exists()
    out.with_suffix(".fault").unlink(missing_ok=True)
    return hit


def wait_for(process: BaseProcess, out: Path, event: int) -> None:
    """Waits until the run has written so much, or has ended."""
    while process.is_alive() and (not out.exists() or events(out) < event):
        time.sleep(0.001)


def content(out: Path) -> dict[str, bytes]:
    """Returns what the files of a finished run say, without times and memory."""
    found = {}
    for name in SAME:
        text = (out / name).read_bytes()
        for varying in _VARIES:
            text = re.sub(varying, b"", text)
        found[name] = text
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> Counter[str]:
    """Returns the files that two runs do not have in common."""
    return Counter(name for name in SAME if one[name] != other[name])
