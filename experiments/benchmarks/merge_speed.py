"""Building a candidate of a search beside mergekit's own merge of tensors in memory.

Ours is what a search pays for one more candidate: new weights and densities, computed from the
held pool into the resident model. The note says what the first candidate took, which computes
what all share, what the passes over the tensors of a new one take without plans, knobs and rules,
and what they would take if all of it lay in the cache.
mergekit merges tensors that lie in memory, in a process of its own: set
``EVOMERGE_MERGEKIT_PYTHON`` to a Python that has it (0.1.5). Both with one thread.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.resident import Resident
from experiments.benchmarks.measured import Measured, in_turns, profile, skipped, waiting
from experiments.benchmarks.models import random_llama, save_experts
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeMethod
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.linear import Linear
from merging.methods.slerp import Slerp
from merging.methods.ties import Ties
from merging.plan import MergePlan
from merging.rules import blocks
from merging.rules.cache import ParameterStack
from merging.seeding import generator

PYTHON = "EVOMERGE_MERGEKIT_PYTHON"
ENTRIES = 2**17
TYPICAL = {"weight": 0.4, "density": 0.5, "gamma": 0.01, "epsilon": 0.15, "scale": 1.0}


@dataclass(frozen=True)
class MergeSpeed:
    """One method on both sides.

    Args:
        theirs: mergekit's name of it.
        bar: how many times as fast ours should be.
        shared: mergekit's parameters of the whole merge.
    """

    ours: MergeMethod
    theirs: str
    bar: float
    experts: int = 3
    rounds: int = 3
    shared: Mapping[str, Any] | None = None


COMPARISONS = (
    MergeSpeed(Linear(), "linear", 3, rounds=9),
    MergeSpeed(Slerp(), "slerp", 3, experts=2, rounds=9, shared={"t": 0.4}),
    MergeSpeed(Ties(), "ties", 20),
    MergeSpeed(DareTies(), "dare_ties", 20),
    MergeSpeed(Breadcrumbs(), "breadcrumbs", 20),
    MergeSpeed(Della(), "della", 20),
)


def measure() -> list[Measured]:
    """Returns a row per method."""
    names = [f"build a candidate, {c.theirs}, 50M Llama bf16" for c in COMPARISONS]
    python = os.environ.get(PYTHON)
    if python is None:
        reason = f"set {PYTHON} to a Python with mergekit 0.1.5"
        return [skipped(name, "mergekit in-process", reason) for name in names]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pool = llama_pool(Path(folder), torch.bfloat16)
        resident = Resident.from_pool(pool, device="cpu", dtype=torch.float32)
        with _peer(python, pool) as ask:
            return [
                _row(name, comparison, pool, resident, ask)
                for name, comparison in zip(names, COMPARISONS, strict=True)
            ]


def llama_pool(folder: Path, dtype: torch.dtype) -> ExpertPool:
    """Returns a random Llama of 49 million parameters and three experts, saved in `folder`."""
    model = random_llama(hidden=576, layers=10, heads=9, vocabulary=8192).to(dtype)
    base, experts = save_experts(model, folder, noise=0.001)
    os.sync()  # else what was written is still on its way to the disk while merges are timed
    return ExpertPool.open(base, experts)


def candidates(method: MergeMethod, experts: tuple[str, ...]) -> Iterator[MergePlan]:
    """Yields plans of random coefficients around typical ones, each new."""
    noise = generator("candidates", type(method).__name__)
    while True:
        knobs: dict[str, Any] = {}
        for knob in method.knobs:
            near = TYPICAL[knob.name] * (0.9 + 0.2 * torch.rand(len(experts), generator=noise))
            values = dict(zip(experts, near.tolist(), strict=True))
            knobs[knob.name] = values if knob.per_expert else values[experts[0]]
        yield MergePlan(method, Whole(), experts, {"model": knobs})


def building(
    method: MergeMethod, pool: ExpertPool, resident: Resident, experts: int
) -> Callable[[], None]:
    """Returns what writes one new candidate into the resident model."""
    plans = candidates(method, pool.expert_names[:experts])

    def build() -> None:
        resident.write(next(plans).weights(pool, dtype=resident.dtype))

    return build


def _typical(method: MergeMethod, experts: int) -> dict[str, Tensor]:
    return {
        knob.name: torch.full((experts,) if knob.per_expert else (), TYPICAL[knob.name])
        for knob in method.knobs
    }


def in_cache(method: MergeMethod, pool: ExpertPool, experts: int) -> float:
    """Returns seconds per entry of the arithmetic alone: of one piece, which the caches hold.

    What it leaves out is reading from memory, writing to it, and finding the tensors.
    """
    assert blocks.merges_by_rule(method)
    whole = pool.tensors(max(pool.names, key=lambda name: pool.base_tensor(name).numel()))
    base = whole.base.reshape(-1)[:ENTRIES]
    rows = tuple(
        replace(row, tensor="piece", stored=row.stored.reshape(-1)[:ENTRIES], base=base)
        for row in whole.rows[:experts]
    )
    tensors = ParameterStack("piece", base, rows, whole.dtype)
    rule = method.rule(tensors, _typical(method, experts))
    out = base.new_empty(ENTRIES, dtype=whole.dtype)
    wait, times = waiting(base.device), []
    for _ in range(100):
        wait()
        began = time.perf_counter()
        blocks.write(rule, tensors, out)
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times) / ENTRIES


def operations(
    method: MergeMethod, pool: ExpertPool, resident: Resident, experts: int
) -> Callable[[], None]:
    """Returns what repeats one candidate's passes, prepared to the last number."""
    assert blocks.merges_by_rule(method)
    prepared = []
    for name in pool.names:
        whole = pool.tensors(name)
        tensors = replace(whole, rows=whole.rows[:experts])
        rule = method.rule(tensors, _typical(method, experts))
        prepared.append((rule, tensors, resident.tensor(name).detach()))

    @torch.inference_mode()
    def work() -> None:
        for rule, tensors, out in prepared:
            blocks.write(rule, tensors, out)

    return work


def _row(
    name: str,
    comparison: MergeSpeed,
    pool: ExpertPool,
    resident: Resident,
    ask: Callable[[Mapping[str, Any]], None],
) -> Measured:
    held = pool.resident(torch.device("cpu"))
    build = building(comparison.ours, held, resident, comparison.experts)
    began = time.perf_counter()
    build()
    first = time.perf_counter() - began
    request = _request(comparison)
    ours, other, ratio = in_turns(build, lambda: ask(request), rounds=comparison.rounds)
    entries = sum(held.base_tensor(name).numel() for name in held.names)
    least = in_cache(comparison.ours, held, comparison.experts) * entries
    bare = operations(comparison.ours, held, resident, comparison.experts)
    alone = in_turns(build, bare, rounds=comparison.rounds)
    return Measured(
        name,
        ours,
        other,
        "mergekit 0.1.5 in-process",
        "s",
        ratio,
        comparison.bar,
        note=f"first candidate {first:.2f} s; one thread each, ours written as float32; limit: "
        f"the passes alone {alone[1]:.3g} s (ratio {ratio / alone[2]:.1f}), on a piece "
        f"that the cache holds {least:.3g} s; where its time goes: {profile(build)}",
    )


def _request(comparison: MergeSpeed) -> dict[str, Any]:
    """Returns mergekit's parameters at the centre of our candidates'."""
    count = comparison.experts
    read = [knob.name for knob in comparison.ours.knobs if knob.per_expert]
    slerp = comparison.theirs == "slerp"
    with_base = comparison.theirs != "linear" and not slerp
    return {
        "method": comparison.theirs,
        "inputs": list(range(0 if with_base else 1, count + 1)),
        "base": 0 if with_base else 1 if slerp else None,
        "each": {} if slerp else {knob: [TYPICAL[knob]] * count for knob in read},
        "shared": dict(comparison.shared or {}),
    }


@contextmanager
def _peer(python: str, pool: ExpertPool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Starts mergekit's side and yields what lets it merge once."""
    script = Path(__file__).with_name("mergekit_peer.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    process = subprocess.Popen(
        [python, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def ask(request: Mapping[str, Any]) -> None:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        if not answers.readline():
            raise RuntimeError(f"{python} {script}: mergekit's side ended; its output is above")

    shapes = [list(pool.base.shape(name)) for name in pool.names]
    try:
        ask({"shapes": shapes, "dtype": "bfloat16", "threads": 1})
        yield ask
    finally:
        requests.close()
        process.wait()
