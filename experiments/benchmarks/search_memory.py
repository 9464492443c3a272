"""Peak memory of searches in full weight space beside the size of one model.

Builds a random Llama and three experts, holds them as a search does, and lets a population of 64
be decoded into the resident model for two generations, each search in a process of its own.
Counted is what comes on top of base and experts: the resident model and all that the search
itself keeps; a tiny model has been searched before, so that the code is in memory already. Linux,
where the system tells a process its peak.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path as File

import torch

from evaluators.engine.resident import Resident
from experiments.benchmarks.measured import Measured, skipped
from experiments.benchmarks.models import random_llama, save_experts
from merging.checkpoints.experts import ExpertPool
from merging.lineages.crossover import (
    ArithmeticCrossover,
    PointCrossover,
    SlerpCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Crossed, Founder, Lineage, Mutated
from merging.lineages.mutation import LowRankMutation
from merging.paths.noise import GaussianNoise, Noise, RowNoise
from merging.spaces.full_weights import FullWeightSpace, weighted_start
from merging.spaces.lineage import LineageSpace
from merging.weights import Weights

POPULATION = 64
GENERATIONS = 2
TINY = "tiny"


def measure() -> list[Measured]:
    """Returns one row per search; see `experiments.benchmarks`."""
    if not File("/proc/self/clear_refs").exists():
        return [skipped("peak memory", "one model", "only Linux tells a process its peak memory")]
    return [
        Measured(
            f"peak memory, {name}, population {POPULATION}",
            peak / 1e6,
            model / 1e6,
            "one model in float32",
            "MB",
            peak / model,
            bar=2.2 if name == "MERGEvolve, normal noise" else 3.0,
            at_most=True,
            note="above base and experts, resident model included",
        )
        for name, peak, model in _peaks()
    ]


def _peaks() -> Iterator[tuple[str, int, int]]:
    """Yields every search with its peak and the size of one model, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        _make(File(folder) / TINY, 64, 1)
        model = _make(File(folder), 384, 8)
        for name in _SEARCHES:
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as process:
                yield name, process.apply(_measure, (folder, name)), model


def _make(folder: File, hidden: int, layers: int) -> int:
    """Saves base and experts; returns the size of one of them in float32."""
    model = random_llama(hidden=hidden, layers=layers)
    save_experts(model, folder)
    return sum(4 * parameter.numel() for parameter in model.parameters())


def _measure(folder: str, search: str) -> int:
    """Returns the peak in bytes above what base and experts hold."""
    torch.set_num_threads(1)
    _search(search, _open(f"{folder}/{TINY}"))
    pool = _open(folder)
    File("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status_bytes("VmRSS")
    _search(search, pool)
    return _status_bytes("VmHWM") - before


def _open(folder: str) -> ExpertPool:
    experts = {f"expert{i}": f"{folder}/expert{i}" for i in range(3)}
    pool = ExpertPool.open(f"{folder}/base", experts).resident(torch.device("cpu"))
    for name in pool.names:  # a first read touches every page that the pool holds
        pool.deltas(name)
    return pool


def _search(search: str, pool: ExpertPool) -> None:
    resident = Resident.from_pool(pool, device="cpu", dtype=torch.float32)
    for weights in _SEARCHES[search](pool):
        resident.write(weights)


def _status_bytes(field: str) -> int:
    """Returns a size from this process's entry in the system's tables."""
    lines = File("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _evolution(noise: Noise) -> Callable[[ExpertPool], Iterable[Weights]]:
    def candidates(pool: ExpertPool) -> Iterable[Weights]:
        space = FullWeightSpace(pool, noise, initial=weighted_start(pool, [0.4, 0.3, 0.3]))
        centre = space.first()
        for generation in range(GENERATIONS):
            numbers = range(POPULATION * generation, POPULATION * (generation + 1))
            for number in numbers:
                yield space.decode(centre.perturbed(number, 0.1))
            centre = centre.moved(tuple((number, 0.01) for number in numbers))

    return candidates


def _crossover(pool: ExpertPool) -> Iterable[Weights]:
    space = LineageSpace(pool, initial=weighted_start(pool, [0.4, 0.3, 0.3]))
    parents: list[Lineage] = [Founder(name) for name in space.domain["founders"]]
    for _ in range(GENERATIONS):
        children: list[Lineage] = []
        for number in range(POPULATION):
            one, other = parents[number % len(parents)], parents[-1 - number % len(parents) // 2]
            kinds = (
                UniformCrossover(number),
                PointCrossover((0.3, 0.7)),
                SlerpCrossover(0.4),
                ArithmeticCrossover(1.3),
            )
            child: Lineage = Crossed(one, other, kinds[number % len(kinds)])
            children.append(Mutated(child, LowRankMutation(number, 1, 0.1)))
        for child in children:
            yield space.decode(child)
        parents = children


_SEARCHES: dict[str, Callable[[ExpertPool], Iterable[Weights]]] = {
    "MERGEvolve, normal noise": _evolution(GaussianNoise("deltas")),
    "MERGEvolve, noise of rows": _evolution(RowNoise()),
    "crossover over task vectors": _crossover,
}
