"""Candidates per second with two Ray workers and with one, one thread each, on this machine.

A random Llama of 22 million parameters with two experts; a population of 8 is written into each
worker's resident model and scored on texts, about a second per candidate. Three workers, two of
one fleet and one of another, are started beforehand; an idle worker takes no time.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from experiments.benchmarks.measured import Measured, in_turns, skipped
from experiments.benchmarks.models import random_llama, save_experts
from experiments.scoring.distributed.cluster import RayCluster
from experiments.scoring.distributed.fleet import Fleet
from experiments.scoring.distributed.on_ray import RayPool
from experiments.setup.dry_run import dry_run
from experiments.setup.execution import WorkerSpec
from experiments.setup.ingredients import open_ingredients, worker_spec
from merging.spaces.space import SearchSpace
from search.loop.evaluation import Batch
from search.loop.pool import run_all

POPULATION = 8
TEXTS = 8
BYTES = 120  # of a text
WORKERS = 2


def measure() -> Iterable[Measured]:
    """Yields one row."""
    title = (
        f"{WORKERS} Ray workers, candidates per second; 22M parameters, population {POPULATION}"
    )
    if (os.cpu_count() or 1) < WORKERS:
        yield skipped(title, "1 worker", f"needs {WORKERS} cores")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder))
        ingredients, problem = open_ingredients(config, dry_run(config))
        spec = worker_spec(config, ingredients, problem.start)
        cluster = RayCluster(None, 1, 0, WORKERS + 1)
        try:
            several, one = (_scoring(cluster, spec, problem.space, size) for size in (WORKERS, 1))
            ours_s, one_s, ratio = in_turns(several, one, rounds=5)
        finally:
            cluster.close()
    yield Measured(title, POPULATION / ours_s, POPULATION / one_s, "1 worker", "1/s", ratio, 1.8)


def _scoring(
    cluster: RayCluster, spec: WorkerSpec, space: SearchSpace[Any], size: int
) -> Callable[[], None]:
    """Returns what scores one population with so many workers of their own."""
    fleet = Fleet(cluster, size, wait_s=600, candidate_s=600)
    fleet.use(spec)
    pool = RayPool(fleet, space.to_json)
    tasks = [Batch([space.first()])] * POPULATION  # workers know nothing of repeats

    def generation() -> None:
        failures = [one.failure for results in run_all(pool, tasks) for one in results]
        assert not any(failures), failures

    while len(fleet.processes) < size:
        generation()
    return generation


def _config(folder: Path) -> DictConfig:
    """Writes base, experts and texts; returns the configuration of a search."""
    base, experts = save_experts(random_llama(), folder, 2)
    text = "the quick brown fox jumps over the lazy dog; " * (BYTES // 45 + 1)
    lines = [json.dumps({"text": f"{number} {text}"[:BYTES]}) for number in range(TEXTS)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = [
        "experts=local",
        f"experts.base={base}",
        f"experts.experts={{{','.join(f'{name}:{path}' for name, path in experts.items())}}}",
        "evaluator@search_on=perplexity",
        f"search_on.text.data={folder}/texts.jsonl",
        "evaluator@select_on=none",
        "evaluator@report_on=none",
        "objective.normalize=raw",
        "strategy=random",
        f"strategy.popsize={POPULATION}",
        "device=cpu",
        "threads=1",
    ]
    with initialize_config_module("conf", version_base="1.3"):
        return compose("search", overrides=options)
