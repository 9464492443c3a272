"""Tries every model type of the installed transformers, and writes docs and README's sentence.

    python -m experiments.benchmarks.conformance [TYPE ...]

Types that stand in ``rows.jsonl`` beside this file for the installed transformers are not tried
again unless they are named; each row is written as soon as it is known, so that a stopped run goes
on where it was. A quarter of an hour on one core. mergekit is tried beside it where
``EVOMERGE_MERGEKIT_PYTHON`` names a Python that has it.
"""

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from experiments.benchmarks.conformance.page import page, told, verdict
from experiments.benchmarks.conformance.rows import Row
from merging.files import write_text

ROWS = Path(__file__).with_name("rows.jsonl")
PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
README = Path(__file__).parents[3] / "README.md"
_BATCH = 100  # types of one process
_SECONDS = 600.0  # for one type, beside other work


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 where a row is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.types) - set(CONFIG_MAPPING)):
        parser.error(f"transformers {transformers.__version__} has no type {unknown[0]!r}")
    if options.one_process:
        _work(options.types)
        return 0
    known = read()
    todo = options.types or [name for name in CONFIG_MAPPING if name not in known]
    for row in _rows(todo):
        known[row["type"]] = row
        _write(known)
        _tell(row)
    write_text(PAGE, page(known))
    write_text(README, told(README.read_text(encoding="utf-8"), known))
    return int(any("cells" in row and verdict(row) == "wrong" for row in known.values()))


def read() -> dict[str, Row]:
    """Returns the rows of the installed transformers; those of another release count for none."""
    if not ROWS.exists():
        return {}
    first, *lines = ROWS.read_text(encoding="utf-8").splitlines()
    if json.loads(first)["transformers"] != transformers.__version__:
        return {}
    return {(row := json.loads(line))["type"]: row for line in lines}


def _write(known: dict[str, Row]) -> None:
    lines: list[Row] = [{"transformers": transformers.__version__}]
    lines += [known[name] for name in CONFIG_MAPPING if name in known]
    write_text(ROWS, "".join(json.dumps(line) + "\n" for line in lines))


def _tell(row: Row) -> None:
    said = row.get("not built") or ", ".join(f"{k} {v}" for k, v in row["cells"].items())
    print(f"{row['type']}: {said[:300]}", flush=True)


def _work(types: Sequence[str]) -> None:
    """Prints a row for each type, in this process; what models print goes to standard error."""
    from experiments.benchmarks.conformance.rows import row

    output: Any = transformers_logging
    output.set_verbosity_error()
    output.disable_progress_bar()
    for name in types:
        with contextlib.redirect_stdout(sys.stderr):
            done = row(name)
        print(json.dumps(done), flush=True)


def _rows(types: Sequence[str]) -> Iterator[Row]:
    """Yields the types' rows, made in other processes; what ends its process has one, too."""
    left = list(types)
    while left:
        for row in _batch(left[:_BATCH]):
            left.remove(row["type"])
            yield row


def _batch(types: Sequence[str]) -> Iterator[Row]:
    command = [sys.executable, "-m", "experiments.benchmarks.conformance", "--one-process", *types]
    single = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    worker = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=single
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    for name in types:
        try:
            line, why = lines.get(timeout=_SECONDS), "its process ended"
        except queue.Empty:
            line, why = None, f"not done after {_SECONDS:.0f} s"
        if line is None:
            worker.kill()
            yield {"type": name, "class": "", "cells": {"merge": f"wrong: {why}"}, "notes": []}
            break
        yield json.loads(line)
    worker.wait()


if __name__ == "__main__":
    sys.exit(main())
