"""Jobs of the experiment, each a file of figures; what is finished is not done again."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.evaluator import Score
from experiments.papers.dedup.cells import Pair, Target, baselines, run_way, write_cell
from experiments.papers.dedup.dialled import dial_table
from experiments.papers.dedup.pools import DedupPool
from experiments.papers.dedup.published_svt import PublishedSvt
from experiments.papers.dedup.selection import selection_table
from experiments.papers.dedup.ways import DedupSetting, Way
from experiments.papers.dedup.zoo import zoo_table
from experiments.reports.table import duration
from experiments.runs.files import read_json
from experiments.runs.processes import process_pool
from merging.privacy.ledger import Ledger

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DedupJob:
    """One file of figures.

    Args:
        kind: ``baselines`` or a way, of a cluster's target, or of all its targets in their order
            where `target` is None; ``zoo`` of a cluster; ``selection`` or ``dial`` of a pool.
    """

    pool: str
    kind: str
    cluster: str = ""
    target: str | None = None

    @property
    def name(self) -> str:
        """For files."""
        return "-".join(filter(None, [self.pool, self.cluster, self.target, self.kind]))


def planned(setting: DedupSetting) -> list[DedupJob]:
    """Returns all jobs, the long ones first."""
    jobs = []
    for name, pool in setting.pools.items():
        for key, cluster in pool.clusters.items():
            ways = _ways(pool, key)
            one_by_one = [way for way in ways if not _in_turn(way)]
            for target in cluster.targets:
                jobs += [DedupJob(name, kind, key, target) for kind in ("baselines", *one_by_one)]
            jobs += [DedupJob(name, way, key) for way in ways if _in_turn(way)]
            jobs += [DedupJob(name, "zoo", key)] * (_stored_way(ways) is not None)
        jobs += [DedupJob(name, kind) for kind in pool.tables]
    return jobs


def _ways(pool: DedupPool, cluster: str) -> list[str]:
    """Returns the ways of a cluster: one without @ is for all, ``drd@same`` for `same` alone."""
    parts = [way.partition("@") for way in pool.ways]
    return [way for way, _, of in parts if of in ("", cluster)]


def _stored_way(ways: Sequence[str]) -> str | None:
    """Returns the way whose result is put into a zoo."""
    return next((way for way in ("dred", "dred1") if way in ways), None)


def _in_turn(way: str) -> bool:
    """Whether a target's checks depend on those before it."""
    return Way.of(way).checks in ("fair", "published")


def identity(setting: DedupSetting, job: DedupJob) -> str:
    """Returns what the figures depend on."""
    pool = setting.pools[job.pool]
    return pool.identity(
        str(pool.training),
        str(dict(pool.experts)),
        str(pool.clusters.get(job.cluster)),
        pool.block_size,
        pool.tolerance,
        (setting.failures, setting.greedy, setting.min_length),
    )


def file_of(setting: DedupSetting, job: DedupJob) -> Path:
    """Returns where a job's figures lie."""
    return setting.out / "cells" / f"{job.name}.json"


def is_finished(setting: DedupSetting, job: DedupJob) -> bool:
    """Returns whether the figures are there, of these very settings."""
    file = file_of(setting, job)
    return file.exists() and read_json(file).get("identity") == identity(setting, job)


def run_jobs(setting: DedupSetting, jobs: Sequence[DedupJob], workers: int) -> None:
    """Trains what is missing, and runs what is left of the jobs."""
    left = [job for job in jobs if not is_finished(setting, job)]
    log.info("%d jobs, %d of them are finished", len(jobs), len(jobs) - len(left))
    if not left:
        return
    with process_pool(workers, threads=1) as pool:
        pools = {job.pool for job in left}
        _each(pool, "starts", [(_start, setting, name) for name in sorted(pools)])
        experts = [
            (_expert, setting, name, expert)
            for name in sorted(pools, reverse=True)
            for expert in setting.pools[name].experts
        ]
        _each(pool, "experts", experts)
        groups: dict[tuple[Any, ...], list[DedupJob]] = {}
        last = [job for job in left if job.kind == "zoo"]
        for job in left:  # what reads the same target is done by one process
            if job in last:
                continue
            alone = job.kind if job.target is None else ""
            groups.setdefault((job.pool, job.cluster, job.target, alone), []).append(job)
        _each(pool, "targets", [(_run, setting, group) for group in groups.values()])
        _each(pool, "zoos", [(_run, setting, [job]) for job in last])


def _each(pool: Any, what: str, calls: Sequence[tuple[Any, ...]]) -> None:
    """Calls all, each a function with its arguments, and says how long the rest will take."""
    began = time.monotonic()
    futures = [pool.submit(*call) for call in calls]
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            left = (time.monotonic() - began) / done * (len(futures) - done)
            log.info("%d/%d %s, about %s left", done, len(futures), what, duration(left))
    finally:  # where one failed, or Ctrl-C: what waits is not begun
        for future in futures:
            future.cancel()


def _start(setting: DedupSetting, name: str) -> None:
    setting.pools[name].folder(setting.cache)


def _expert(setting: DedupSetting, name: str, expert: str) -> None:
    setting.pools[name].expert(setting.cache, expert)


def _run(setting: DedupSetting, jobs: Sequence[DedupJob]) -> None:
    """Runs jobs of one target, or one job of several."""
    first = jobs[0]
    tables: dict[str, Callable[..., dict[str, Any]]] = {
        "selection": selection_table,
        "dial": dial_table,
    }
    if not first.cluster:
        _write(setting, first, tables[first.kind](setting, first.pool))
    elif first.kind == "zoo":
        pool = setting.pools[first.pool]
        targets, way = (
            pool.clusters[first.cluster].targets,
            _stored_way(_ways(pool, first.cluster)),
        )
        assert way is not None
        done = {t: DedupJob(first.pool, way, first.cluster, t) for t in targets}
        files = {t: file_of(setting, job).with_suffix(".npy") for t, job in done.items()}
        _write(setting, first, zoo_table(setting, first.pool, first.cluster, files))
    elif first.target is None:
        _write(setting, first, _run_in_turn(setting, first))
    else:
        cluster = setting.pools[first.pool].clusters[first.cluster]
        target = Target(setting, first.pool, first.target)
        base = Target(setting, first.pool, cluster.base)
        pair = Pair.of(target, base)
        for job in jobs:
            if job.kind == "baselines":
                _write(setting, job, baselines(pair, base))
            else:
                found, figures = run_way(pair, Way.of(job.kind), setting)
                np.save(file_of(setting, job).with_suffix(".npy"), found.pointers)
                _write(setting, job, figures)


def _run_in_turn(setting: DedupSetting, job: DedupJob) -> dict[str, Any]:
    pool = setting.pools[job.pool]
    cluster, way = pool.clusters[job.cluster], Way.of(job.kind)
    published, fair, before = None, None, list[Ledger]()
    found: dict[str, Any] = {}
    base = Target(setting, job.pool, cluster.base)
    for name in _by_epsilon(pool.experts, cluster.targets):
        target = Target(setting, job.pool, name)
        pair = Pair.of(target, base)
        if way.checks == "published" and published is None:
            spent = pair.target.ledger.joined(pair.base).everywhere
            assert spent is not None
            published = PublishedSvt(
                epsilon=spent.epsilon,
                items=pool.validation,
                failures=setting.failures,
                seed=pool.seed,
            )
        substitution, found[name] = run_way(
            pair, way, setting, fair=fair, others=before, published=published
        )
        if way.checks == "fair":
            fair = _main(target.score("validation", substitution))
            before.append(target.ledger)
    return {"targets": found}


def _main(scores: dict[str, Score]) -> Score:
    return next(iter(scores.values()))


def _by_epsilon(experts: Any, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: experts[name].epsilon)


def _write(setting: DedupSetting, job: DedupJob, figures: dict[str, Any]) -> None:
    write_cell(file_of(setting, job), identity(setting, job), figures)
    log.info("%s", job.name)
