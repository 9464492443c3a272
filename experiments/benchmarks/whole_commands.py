"""Whole commands, as a person waits for them: `evomerge merge` beside `mergekit-yaml` and `cp`.

Both run the same mergekit files, in turns. Models are made in code: a bfloat16 Llama of 398
million parameters and three experts (3 GB on the disk), others of another size with the same
largest tensor. Memory is a process's own pages at their peak, without mapped files. mergekit is
found as in `merge_speed`: ``EVOMERGE_MERGEKIT_PYTHON``. Linux.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
SIZES = {"100M": 3, "398M": 27, "1.2B": 91}  # layers: the largest tensor is the same in all
TINY: Mapping[str, int] = {"hidden": 64, "layers": 2, "heads": 4, "vocabulary": 3072}
METHODS: Mapping[str, tuple[float, float]] = {  # bars with hashes cached, and at the first run
    "linear": (2, 1.2),
    "slerp": (2, 1.2),
    "ties": (8, 4),
    "dare_ties": (8, 4),
    "breadcrumbs": (8, 4),
    "della": (8, 4),
}


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
        subprocess.run(command, check=True, env=self.environment(cache), **_QUIET)
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
_QUIET: Mapping[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def measure() -> Iterable[Measured]:
    """Yields the rows; see `experiments.benchmarks`."""
    if not Path("/proc/self/io").exists():
        yield skipped("whole commands", "mergekit-yaml", "only Linux tells what a process reads")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield from _tiny(_made(Path(folder) / "tiny", TINY))
        large = _made(Path(folder) / "large", LARGE)
        yield from _merges(large)
        yield _copying(large)
        yield _finite_check(large)
        yield _cold(large)
        yield _first_candidate(large)
        shutil.rmtree(large.folder)
        yield from _memory(Path(folder))


def _made(folder: Path, sizes: Mapping[str, int]) -> Home:
    save_experts(random_llama(**sizes).to(torch.bfloat16), folder, noise=0.001)
    os.sync()
    return Home(folder, count())


def _beside(home: Home, method: str, measure: str, bar: float, *, first: bool = False) -> Measured:
    """Returns a merge of ours beside mergekit's."""
    against = "`mergekit-yaml`"
    if PYTHON not in os.environ:
        return skipped(measure, against, f"set {PYTHON} to a Python with mergekit 0.1.5")
    caches = (f"cache{number}" if first else "cache" for number in count())
    ours, theirs, ratio = in_turns(
        lambda: home.merge(method, next(caches)),
        lambda: home.run(*home.theirs(method)),
        rounds=ROUNDS,
    )
    return Measured(measure, ours, theirs, against, "s", ratio, bar)


def _merges(home: Home) -> Iterator[Measured]:
    for method, (known, first) in METHODS.items():
        what = f"`evomerge merge`, {method}, 398M bf16"
        yield _beside(home, method, f"{what}, hashes cached", known)
        yield _beside(home, method, f"{what}, first run", first, first=True)


def _tiny(home: Home) -> Iterator[Measured]:
    yield _beside(home, "linear", "`evomerge merge` of 0.5M parameters", 1)
    seconds = statistics.median(_seconds(partial(home.merge, "linear")) for _ in range(ROUNDS))
    what = "`evomerge merge` of 0.5M parameters, seconds"
    yield Measured(what, seconds, 3.0, "3 s", "s", seconds / 3.0, 1, at_most=True)


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
    with subprocess.Popen(command, env=home.environment(), **_QUIET) as search:
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


def _memory(folder: Path) -> Iterator[Measured]:
    """Yields the peaks of three sizes; each beside mergekit's, the largest beside the smallest."""
    peaks = {}
    for name, layers in SIZES.items():
        home = _made(folder / name, {**LARGE, "layers": layers})
        home.merge("linear")  # hashes are known then
        peaks[name] = _peak_bytes(home.ours("linear"), home) / 1e6
        what, against = f"anonymous memory of a linear merge, {name}", "`mergekit-yaml`"
        if PYTHON in os.environ:
            other = _peak_bytes(home.theirs("linear"), home) / 1e6
            ratio = peaks[name] / other
            yield Measured(what, peaks[name], other, against, "MB", ratio, 1, at_most=True)
        shutil.rmtree(home.folder)
    least, most = min(peaks.values()), max(peaks.values())
    what = f"the same, most of {', '.join(peaks)}"
    yield Measured(what, most, least, "the least", "MB", most / least, 1.1, at_most=True)


def _peak_bytes(command: Sequence[str], home: Home) -> int:
    """Returns the most of a process's own pages, seen a hundred times a second."""
    peak = 0
    with subprocess.Popen(command, env=home.environment(), **_QUIET) as process:
        statm = Path(f"/proc/{process.pid}/statm")
        while process.poll() is None:
            _, resident, shared, *_ = map(int, statm.read_text(encoding="ascii").split())
            peak = max(peak, resident - shared)
            time.sleep(0.01)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    shutil.rmtree(home.folder / "out", ignore_errors=True)
    return peak * os.sysconf("SC_PAGE_SIZE")


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
