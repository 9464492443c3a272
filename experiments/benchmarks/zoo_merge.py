"""Whole merges of three experts from a zoo beside the same merges from plain files.

What ``evomerge merge`` does from opening to the written model: headers, all values finite, the
merge, the files. The experts lie in the zoo as differences to their base, so that every read of
one decodes the base's block, which the cache of blocks keeps for all three. That values are finite
is known of them since they were added, so that a merge reads them once, and plain files twice. The
bar is set for the cheapest rule, too: the others do more for each byte that is read.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.benchmarks.measured import Measured, in_turns
from experiments.benchmarks.models import random_llama, save_experts
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeMethod
from merging.methods.linear import Linear
from merging.methods.ties import Ties
from merging.plan import uniform_plan
from merging.saving.save import save_model
from merging.zoo.blocks import forget
from merging.zoo.store import Zoo

BAR = 1.5


def measure() -> list[Measured]:
    """Returns a row per method, and one for reading alone."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = random_llama(hidden=1024, layers=12, heads=16, vocabulary=16384).to(torch.bfloat16)
        base, experts = save_experts(model, folder / "plain", noise=0.001)
        stored, share = _stored(folder, base, experts)
        plain = base, experts
        size = sum(path.stat().st_size for path in (folder / "plain").rglob("*.safetensors"))
        rows = [_merging(method, folder, plain, stored, share) for method in (Linear(), Ties())]
        return [*rows, _reading(plain, stored, size)]


Sources = tuple[str, dict[str, str]]
"""Base; name to expert."""


def _stored(folder: Path, base: str, experts: dict[str, str]) -> tuple[Sources, str]:
    """Returns the same models in a zoo, and what adding them was like."""
    zoo = Zoo.open(folder / "zoo", create=True)
    began, done, taken = time.perf_counter(), 0, 0
    for name, directory in {"base": base, **experts}.items():
        added = zoo.add(Path(directory), name)
        done, taken = done + added.bytes, taken + added.stored_bytes
    speed = done / (time.perf_counter() - began) / 1e6
    named = {name: f"zoo:{zoo.directory}/{name}" for name in ("base", *experts)}
    said = f"stored in {100 * taken / done:.0f} % of the bytes, added at {speed:.0f} MB/s"
    return (named.pop("base"), named), said


def _merging(
    method: MergeMethod, folder: Path, plain: Sources, stored: Sources, share: str
) -> Measured:
    name = type(method).__name__.lower()
    ours, other, ratio = in_turns(
        _merge(method, stored, folder / "ours"), _merge(method, plain, folder / "other"), rounds=5
    )
    return Measured(
        f"merge three experts, {name}, 200M Llama bf16",
        ours,
        other,
        "plain files",
        "s",
        1 / ratio,
        BAR,
        at_most=True,
        note=share,
    )


def _merge(method: MergeMethod, sources: Sources, out: Path) -> Callable[[], None]:
    def work() -> None:
        pool = ExpertPool.open(*sources)
        pool.check_finite()
        plan = uniform_plan(method, Whole(), pool)
        save_model(pool, plan.weights(pool), out)
        shutil.rmtree(out)
        forget()

    return work


def _reading(plain: Sources, stored: Sources, size: int) -> Measured:
    def read(sources: Sources) -> Callable[[], None]:
        def work() -> None:
            opened = [Checkpoint.open(source) for source in (sources[0], *sources[1].values())]
            for name in opened[0]:
                for checkpoint in opened:
                    checkpoint[name].clone()
            forget()

        return work

    ours, other, ratio = in_turns(read(stored), read(plain), rounds=5)
    note = "base and experts, tensor by tensor; files in the system's memory"
    return Measured(
        "read four models",
        size / ours / 1e6,
        size / other / 1e6,
        "plain files",
        "MB/s",
        ratio,
        None,
        note=note,
    )
