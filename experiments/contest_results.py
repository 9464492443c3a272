"""The page of a contest: what was run, on what machine, and who won, in Markdown."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments.compare.compare_run import compare
from experiments.compare.compare_text import markdown
from experiments.table import duration


class Entered(Protocol):
    """A run of the contest, as far as its results are concerned."""

    @property
    def table(self) -> str:
        """Which comparison it belongs to."""
        ...

    @property
    def world(self) -> str:
        """Experts, evaluators and budget."""
        ...

    @property
    def arm(self) -> str:
        """What is compared."""
        ...

    @property
    def seed(self) -> int:
        """Of the run."""
        ...

    @property
    def run(self) -> Path:
        """Its directory."""
        ...


def write_results(
    plan: Mapping[str, Any],
    entries: Sequence[Entered],
    failures: Mapping[Path, str],
    *,
    seconds: float,
) -> str:
    """Returns the page.

    Args:
        plan: the contest's options.
        entries: all runs.
        failures: run to reason, for those that did not finish.
        seconds: that this start of the command took.
    """
    parts = [f"# {plan['title']}", _facts(plan, entries, seconds)]
    for table, content in plan["tables"].items():
        for world in dict.fromkeys(e.world for e in entries if e.table == table):
            own = [e for e in entries if (e.table, e.world) == (table, world)]
            parts.append(_table(content, plan["worlds"][world], world, own, failures))
    return "\n\n".join(parts) + "\n"


def _facts(plan: Mapping[str, Any], entries: Sequence[Entered], seconds: float) -> str:
    worked = sum(_worked_s(entry.run) for entry in entries)
    lines = [
        f"Written by `{plan['command']}`; do not edit by hand.",
        "",
        f"- machine: {_machine()}",
        f"- runs: {len(entries)}, {plan['workers']} at a time, one thread each; "
        f"{duration(worked)} in candidates' evaluations, {duration(seconds)} for this start of "
        "the command",
        f"- options of every run: `{shlex.join(plan['options'])}`",
        "- winner of a run: the best of the finalists on the selection items; reported: the "
        "held-out items, which no search reads",
    ]
    return "\n".join(lines)


def _table(
    content: Mapping[str, Any],
    world: Mapping[str, Any],
    name: str,
    entries: Sequence[Entered],
    failures: Mapping[Path, str],
) -> str:
    arms = "\n".join(
        f"| {arm} | `{shlex.join(options)}` |" for arm, options in content["arms"].items()
    )
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(e.seed for e in entries))
    parts = [
        f"## {content['title']}: {name}",
        f"{world['title']} Options `{shlex.join(world['options'])}`, seeds {seeds}.",
    ]
    lost = [e for e in entries if e.run in failures]
    if lost:
        parts.append(
            "\n".join(f"- failed: {e.arm}, seed {e.seed}: {failures[e.run]}" for e in lost)
        )
    finished = [e.run for e in entries if e.run not in failures]
    if finished:
        against = content.get("against")
        parts.append(markdown(compare(finished, against=against)))
    head = "<details><summary>Options of the arms</summary>\n\n| arm | options |\n|---|---|"
    parts.append(f"{head}\n{arms}\n\n</details>")
    return "\n\n".join(parts)


def _worked_s(run: Path) -> float:
    summary = run / "summary.json"
    if not summary.exists():
        return 0.0
    return float(json.loads(summary.read_text(encoding="utf-8"))["seconds"])


def _machine() -> str:
    import torch
    import transformers

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
