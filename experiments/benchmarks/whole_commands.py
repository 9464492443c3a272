"""Whole commands, as a person waits for them: `evomerge merge` beside `mergekit-yaml` and `cp`.

Both run the same mergekit files, in turns. Models are made in code: a bfloat16 Llama of 398
million parameters and three experts (3 GB on the disk), others of another size with the same
largest tensor. Memory is a process's own pages at their peak, without mapped files. mergekit is
found as in `merge_speed`: ``EVOMERGE_MERGEKIT_PYTHON``. Loops were compiled before. Linux.

Methods that trim or draw are measured by `whole_commands_sparse`, memory by
`whole_commands_memory`: each of the three takes some minutes.
"""

import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.measured import Measured, in_turns, skipped
from experiments.benchmarks.merge_speed import PYTHON
from experiments.benchmarks.models import random_llama, save_experts
from merging.finite import finite

ROUNDS = 3
LARGE: Mapping[str, int] = {"hidden": 1024, "layers": 27, "heads": 16, "vocabulary": 29000}
TINY: Mapping[str, int] = {"hidden": 64, "layers": 2, "heads": 4, "vocabulary": 3072}


@dataclass(frozen=True)
class Home:
    """A directory of models, and of what commands write."""

    folder: Path
    names: Iterator[int]

    def command(self, module: str, *arguments: str, python: str = sys.executable) -> list[str]:
        """Returns a command line."""
        return [python, "-m", module, *arguments]

    def merge(self, method: str, cache: str = "cache") -> None:
        """Runs `evomerge merge`; `cache` holds the hashes that are known."""
        self.run(*self.ours(method), cache=cache)

    def ours(self, method: str) -> list[str]:
        """Returns the command that merges one mergekit file."""
        out = f"out={self.new()}"
        return self.command("experiments.cli", "merge", f"mergekit={self.file(method)}", out)

    def theirs(self, method: str) -> list[str]:
        """Returns mergekit's."""
        python = os.environ[PYTHON]
        file, out = str(self.file(method)), str(self.new())
        return self.command("mergekit.scripts.run_yaml", file, out, python=python)

    def run(self, *command: str, cache: str = "cache") -> None:
        """Runs a command to its end, and deletes what it wrote."""
        subprocess.run(command, check=True, env=self.environment(cache), **QUIET)
        shutil.rmtree(self.folder / "out", ignore_errors=True)

    def environment(self, cache: str = "cache") -> dict[str, str]:
        """Returns the variables of a command."""
        root = str(Path(__file__).parents[2])
        return {**os.environ, "EVOMERGE_CACHE": str(self.folder / cache), "PYTHONPATH": root}

    def new(self) -> Path:
        """Returns a directory that does not exist yet."""
        (self.folder / "out").mkdir(exist_ok=True)
        return self.folder / "out" / str(next(self.names))

    def file(self, method: str) -> Path:
        """Writes the mergekit file of a method."""
        numbers = range(2 if method == "slerp" else 3)
        experts = [{"model": f"{self.folder}/expert{i}"} for i in numbers]
        for expert in experts if method != "slerp" else ():
            expert["parameters"] = {"weight": 0.4, "density": 0.5}  # type: ignore[assignment]
        content: dict[str, Any] = {
            "merge_method": method,
            "models": experts,
            "dtype": "bfloat16",
            "parameters": {"t": 0.4} if method == "slerp" else {},
        }
        if method == "slerp":
            content["base_model"] = f"{self.folder}/expert0"
        elif method != "linear":
            content["base_model"] = f"{self.folder}/base"
        path = self.folder / f"{method}.yaml"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def inputs(self, models: str = "*") -> list[Path]:
        """Returns the weight files of the models with such names."""
        return sorted(self.folder.glob(f"{models}/*.safetensors"))


_LINEAR = "expert*"  # what a linear merge reads: no base
QUIET: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def measure() -> Iterable[Measured]:
    """Yields the rows; see `experiments.benchmarks`."""
    if not Path("/proc/self/io").exists():
        yield skipped("whole commands", "mergekit-yaml", "only Linux tells what a process reads")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from _tiny(made(Path(folder) / "tiny", TINY))
        large = made(Path(folder) / "large", LARGE)
        for method in ("linear", "slerp"):
            yield from beside(large, method, bars=(2, 1.2))
        yield _copying(large)
        yield _finite_check(large)
        yield _cold(large)
        yield _first_candidate(large)


def made(folder: Path, sizes: Mapping[str, int]) -> Home:
    """Returns new models of these sizes."""
    save_experts(random_llama(**sizes).to(torch.bfloat16), folder, noise=0.001)
    os.sync()
    return Home(folder, count())


def beside(
    home: Home, method: str, *, bars: tuple[float, float], rounds: int = ROUNDS
) -> Iterator[Measured]:
    """Yields merges of ours beside mergekit's, in turns: with hashes cached, and the first.

    Args:
        bars: of the two.
    """
    measures = [
        f"`evomerge merge`, {method}, 398M bf16, {k}" for k in ("hashes cached", "first run")
    ]
    against = "`mergekit-yaml`"
    if PYTHON not in os.environ:
        reason = f"set {PYTHON} to a Python with mergekit 0.1.5"
        yield from (skipped(measure, against, reason) for measure in measures)
        return
    home.merge(method)
    turns = [
        (
            _seconds(lambda: home.run(*home.theirs(method))),
            _seconds(partial(home.merge, method)),
            _seconds(partial(home.merge, method, f"cache-{method}-{number}")),
        )
        for number in range(rounds)
    ]
    theirs = [turn[0] for turn in turns]
    floor = _Floor.of(home, method)
    for which, (measure, bar) in enumerate(zip(measures, bars, strict=True), start=1):
        ours = [turn[which] for turn in turns]
        ratios = sorted(other / own for own, other in zip(ours, theirs, strict=True))
        middle = statistics.median
        notes = [f"of {rounds} rounds {ratios[0]:.3g} to {ratios[-1]:.3g}"] if rounds > 1 else []
        note = "; ".join([*notes, floor.said(middle(theirs), hashing=which == 2)])
        figures = middle(ours), middle(theirs), against, "s", middle(ratios)
        yield Measured(measure, *figures, bar, note=note)


@dataclass(frozen=True)
class _Floor:
    """Seconds of what no merge of this kind can leave out, each measured alone."""

    imports: float
    reading: float
    writing: float
    hashing: float

    @classmethod
    def of(cls, home: Home, method: str) -> "_Floor":
        """Returns the floor of a merge by `method`."""
        inputs = home.inputs({"linear": _LINEAR, "slerp": "expert[01]"}.get(method, "*"))
        code = "import experiments.commands.merge_models, hydra, torch"
        imports = [_seconds(lambda: home.run(sys.executable, "-c", code)) for _ in range(ROUNDS)]
        reading = _seconds(lambda: [path.read_bytes() for path in inputs])
        # the output is as large as one input
        writing = _seconds(lambda: home.run("cp", str(inputs[0]), str(home.new())))
        with ThreadPoolExecutor() as pool:
            hashing = _seconds(lambda: list(pool.map(_sha256, inputs)))
        return cls(statistics.median(imports), reading, writing, hashing)

    def said(self, theirs: float, *, hashing: bool) -> str:
        """Returns the parts, and the ratio if a merge did nothing else."""
        parts = {
            "imports": self.imports,
            "reading": self.reading,
            "`cp` of the output": self.writing,
        }
        if hashing:
            parts["SHA-256 of its files in threads"] = self.hashing
        shown = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in parts.items())
        return f"{shown}: a ratio of {theirs / sum(parts.values()):.3g} if nothing else were done"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tiny(home: Home) -> Iterator[Measured]:
    what = "`evomerge merge` of 0.5M parameters, models seen before"
    known = next(beside(home, "linear", bars=(1, 1)))
    yield replace(known, measure=what)
    if known.ours is not None:
        ratio = known.ours / 3.0
        yield Measured(f"{what}, seconds", known.ours, 3.0, "3 s", "s", ratio, 1, at_most=True)


def _copying(home: Home) -> Measured:
    inputs = home.inputs(_LINEAR)

    def copy() -> None:
        for path in (*inputs, inputs[0]):  # the output is as large as one input
            subprocess.run(["cp", path, home.new()], check=True)
        shutil.rmtree(home.folder / "out")

    ours, other, ratio = in_turns(partial(home.merge, "linear"), copy, rounds=ROUNDS)
    what = "`evomerge merge`, linear, 398M bf16"
    return Measured(what, ours, other, "`cp` of inputs and output", "s", 1 / ratio, 1.5, True)


def _finite_check(home: Home) -> Measured:
    values = torch.randn(2**28, dtype=torch.bfloat16)
    target = torch.empty_like(values)
    ours, copy, ratio = in_turns(lambda: finite(values), lambda: target.copy_(values))
    gb = values.nbytes / 1e9
    return Measured("search for NaN, bf16", gb / ours, gb / copy, "copy", "GB/s", ratio, 0.8)


def _cold(home: Home) -> Measured:
    """Returns the bytes that the system read from the disk, whose cache was emptied before."""
    inputs = home.inputs(_LINEAR)
    for path in inputs:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock
    home.merge("linear", "cold")
    read = 512 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before) / 1e9
    size = sum(path.stat().st_size for path in inputs) / 1e9
    what = "read from the disk by a cold merge, first run"
    return Measured(what, read, size, "its files", "GB", read / size, 1.05, at_most=True)


def _first_candidate(home: Home) -> Measured:
    """Returns the time until a search's history has a line, beside that of reading all files."""
    texts = home.folder / "texts.jsonl"
    lines = [
        json.dumps({"text": f"the {i} quick brown foxes jump over {i} dogs"}) for i in range(12)
    ]
    texts.write_text("\n".join(lines), encoding="utf-8")
    experts = ",".join(f"e{i}:{home.folder}/expert{i}" for i in range(3))
    history = home.new() / "history.jsonl"
    command = home.command(
        *("experiments.cli", "search", f"base={home.folder}/base", f"experts={{{experts}}}"),
        *(f"tasks=[{texts}]", f"out={history.parent}", "budget=1", "strategy=random"),
        *("baselines=none", "in_hull=null", "tracker=none", "objective.normalize=raw"),
    )
    began = time.perf_counter()
    with subprocess.Popen(command, env=home.environment(), **QUIET) as search:
        while search.poll() is None and not (history.exists() and history.stat().st_size):
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        search.kill()
    if not history.exists():
        raise subprocess.CalledProcessError(search.returncode, command)
    reading = _seconds(lambda: [path.read_bytes() for path in home.inputs()])
    what = "`evomerge search` up to its first candidate, 398M"
    against = "reading all files once"
    return Measured(what, seconds, reading, against, "s", seconds / reading, 2, at_most=True)


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
