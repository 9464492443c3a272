"""All benchmarks, or the named ones, one after the other; writes the results of this device.

    python -m experiments.benchmarks [NAME ...] [--results DIR]

Every benchmark is a module of this package with ``measure() -> Iterable[Measured]``. Each runs
in a process of its own. ``DIR/DEVICE.json`` keeps the rows of earlier calls on the same device, so
that single benchmarks can be repeated; ``DIR/RESULTS.md`` is written from all files of the folder.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.measured import Measured
from experiments.runs.directory import environment
from experiments.runs.markdown import markdown_table
from merging.files import write_text

BENCHMARKS = (
    "harness_overhead",
    "loop_speed",
    "merge_bandwidth",
    "merge_speed",
    "population_speed",
    "private_speed",
    "racing_gain",
    "racing_gain_larger",
    "racing_gain_seeds",
    "ray_scaling",
    "search_memory",
    "start_up",
    "whole_commands",
    "whole_commands_memory",
    "whole_commands_sparse",
    "zoo_codec",
    "zoo_merge",
    "zoo_open",
    "zoo_serving",
)
_HEAD = ("measure", "ours", "against", "its figure", "ratio", "bar", "met", "note")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs benchmarks and writes their results; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent, metavar="DIR")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    if options.one:
        rows = import_module(f"experiments.benchmarks.{options.names[0]}").measure()
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    options.results.mkdir(parents=True, exist_ok=True)
    failed = [name for name in options.names or BENCHMARKS if not _run(name, options.results)]
    write_text(options.results / "RESULTS.md", _page(options.results))
    return 1 if failed else 0


def _run(name: str, results: Path) -> bool:
    """Runs one benchmark in a process of its own and keeps its rows; returns whether it ran."""
    print(f"{name} ...", flush=True)
    command = [sys.executable, "-m", "experiments.benchmarks", name, "--one"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{name} failed with exit status {done.returncode}", file=sys.stderr)
        return False
    rows = json.loads(done.stdout.splitlines()[-1])
    for row in rows:
        print(f"  {_line(row)}", flush=True)
    device = _device()
    path = results / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    known[name] = {"environment": _environment(), "rows": rows}
    results_of_device = {"device": device, "rows": dict(sorted(known.items()))}
    write_text(path, json.dumps(results_of_device, indent=1) + "\n")
    return True


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {environment()['cores']} cores"


def _environment() -> dict[str, Any]:
    return {key: value for key, value in environment().items() if key not in ("command", "cuda")}


def _line(row: Mapping[str, Any]) -> str:
    return " | ".join(_cells(Measured(**row)))


def _cells(row: Measured) -> list[str]:
    bar = "-" if row.bar is None else f"{'≤' if row.at_most else '≥'} {row.bar:g}"
    met = {True: "yes", False: "no", None: "-"}[row.met]
    return [
        row.measure,
        _number(row.ours, row.unit),
        row.against,
        _number(row.other, row.unit),
        "-" if math.isnan(row.ratio) else f"{row.ratio:.3g}",
        bar,
        met,
        row.note,
    ]


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}".strip()


def _page(results: Path) -> str:
    parts = [
        "# Benchmarks",
        "Written by `python -m experiments.benchmarks`; do not edit. Both figures of a row "
        "come from one run on one machine, taken in turns; the ratio is the median over rounds.",
    ]
    for path in sorted(results.glob("*.json")):
        device = json.loads(path.read_text())
        parts.append(f"## {device['device']}")
        for name, entry in device["rows"].items():
            parts.append(f"### {name}\n\n{_described(entry['environment'])}")
            cells = [_cells(Measured(**row)) for row in entry["rows"]]
            parts.append(markdown_table(_HEAD, cells, "lrlrrrll"))
    return "\n\n".join(parts) + "\n"


def _described(machine: Mapping[str, Any]) -> str:
    packages = machine["packages"]
    return (
        f"{machine['platform']}, {machine['cores']} cores, Python {machine['python']}, "
        f"torch {packages['torch']}, transformers {packages['transformers']}"
    )


if __name__ == "__main__":
    sys.exit(main())
