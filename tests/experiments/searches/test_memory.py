"""The memory that a search says is the one that it takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.runs.memory import Peak
from tests import builders
from tests.experiments.local import environment, write_texts

MEASURED = """
import sys
import torch
from experiments.cli import main
from experiments.runs.memory import Peak

with Peak(torch.device("cpu")) as peak:
    main(sys.argv[1:])
print("peak", peak.bytes / 1e9)
"""
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("memory")
    base = builders.llama(root / "base", **SIZES)
    builders.experts_of(base, 3, names=("a", "b", "c"))
    for name in "abc":
        builders.lora_adapter(root / f"lora-{name}", base, targets="all-linear")
    write_texts(root / "texts.jsonl", first=0, count=80)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("base", ["space=coefficients", "method=ties", "strategy=cma"]),
        ("lora", ["strategy=cma", "dtype=bfloat16"]),
        ("base", ["strategy=mergevolve", "keep_gb=0"]),
    ],
)
def test_a_search_says_how_much_memory_it_takes(
    home: Path, tmp_path: Path, kind: str, options: list[str]
) -> None:
    experts = ",".join(f"{name}:{home}/{kind}-{name}" for name in "abc")
    line = [f"base={home}/base", f"experts={{{experts}}}", f"tasks=[{home}/texts.jsonl]"]
    line += ["budget=12", "tracker=none", "in_hull=null", f"out={tmp_path}/run", *options]
    line.append("objective.normalize=raw")  # made-up experts are no better than their base
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "search", *line],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"^memory +about ([\d.]+) GB", done.stdout, re.M)
    measured = re.search(r"^peak ([\d.]+)", done.stdout, re.M)
    assert said is not None, done.stdout
    assert measured is not None
    assert 0.8 < float(said[1]) / float(measured[1]) < 1.2, done.stdout


def test_the_peak_is_the_most_that_is_held_at_a_time() -> None:
    """Of memory that is written to; what is let go between counts once."""
    with Peak(torch.device("cpu")) as before:
        torch.ones(2**24).sum()
    with Peak(torch.device("cpu")) as one:
        for _ in range(3):
            _hold_a_while(torch.ones(2**26))
    assert 0.15e9 < one.bytes - before.bytes < 0.4e9


def _hold_a_while(held: torch.Tensor) -> None:
    for _ in range(10):
        held.add_(1)
