"""A tiny search on disk: real checkpoints, real text files, and the command line on both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests import builders

EXPERTS = ("code", "prose", "maths")
_TEXT = "the quick brown fox jumps over the lazy dog and runs away from {i} hounds at {j} o'clock"


def write_texts(path: Path, *, first: int, count: int = 4) -> Path:
    """Writes a JSON-lines file of short documents; `first` keeps two files apart."""
    lines = [
        json.dumps({"text": _TEXT.format(i=i, j=i * 7 % 24)}) for i in range(first, first + count)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_world(root: Path) -> Path:
    """Makes base, three experts and three data files below `root`."""
    base = builders.llama(root / "base")
    builders.experts_of(base, 3, 0.02, names=EXPERTS)
    for i, split in enumerate(("search", "selection", "report")):
        write_texts(root / f"{split}.jsonl", first=100 * i)
    return root


def overrides(root: Path, *more: str) -> list[str]:
    """Returns the options of a search in the world below `root`."""
    experts = ",".join(f"{name}:{root}/base-{name}" for name in EXPERTS)
    return [
        "experts=local",
        f"experts.base={root}/base",
        f"experts.experts={{{experts}}}",
        "evaluator@search_on=perplexity",
        f"search_on.text.data={root}/search.jsonl",
        "evaluator@select_on=perplexity",
        f"select_on.text.data={root}/selection.jsonl",
        "evaluator@report_on=perplexity",
        f"report_on.text.data={root}/report.jsonl",
        "objective.normalize=raw",
        "baselines=few",
        "tracker=none",
        "budget.evaluations=8",
        "device=cpu",
        f"runs={root}/runs",
        *more,
    ]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a child process: one thread, nothing online."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}


def evomerge(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, started in another directory."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
