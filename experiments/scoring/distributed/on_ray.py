"""Candidates scored by Ray's workers: many devices, many nodes, the same results."""

import logging
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from experiments.runs.errors import UserError
from experiments.scoring.asking import Question
from experiments.scoring.distributed.cluster import RayCluster
from experiments.scoring.distributed.fleet import Fleet
from experiments.setup.execution import WorkerSpec
from search.loop.evaluation import Batch
from search.loop.pool import Pool

log = logging.getLogger(__name__)


class OnRay:
    """Workers with a device each; genomes travel to them, and back scores, or a race's answers.

    Every worker opens base and experts where this process found them: at the same path, or as a
    Hugging Face id in the node's cache. It scores as this process would, with as many threads,
    so that the same seed gives the same bytes with any number of workers and after any of them
    has died; on other processors or devices than this one's, up to their rounding.

    Args:
        workers: how many; None: as many as have room.
        address: ``host:port`` of the head of a Ray cluster, or ``auto`` for the one that this
            machine belongs to; None: a cluster of our own on this machine, for this run.
        cpus_per_worker: CPUs that a worker asks for; threads are set by ``threads``.
        gpus_per_worker: GPUs that a worker asks for, 0.5 for two on one; None: 1 where the main
            process computes on CUDA, else 0. The main process holds a model of its own on the
            first GPU of its node, which Ray does not count.
        wait_s: most seconds without any worker.
        candidate_s: most seconds of one candidate, after which its worker is replaced.
    """

    elsewhere = True

    def __init__(
        self,
        *,
        workers: int | None = None,
        address: str | None = None,
        cpus_per_worker: float = 1,
        gpus_per_worker: float | None = None,
        wait_s: float = 300,
        candidate_s: float = 3600,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"execution.workers must be at least 1 or null, got {workers}")
        least = {"cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker or 0}
        for name, value in least.items():
            if value < 0:
                raise ValueError(f"execution.{name} must be at least 0, got {value}")
        for name, value in {"wait_s": wait_s, "candidate_s": candidate_s}.items():
            if not value > 0:
                raise ValueError(f"execution.{name} must be above 0 seconds, got {value}")
        self._workers = workers
        self._address = address
        self._cpus = cpus_per_worker
        self._gpus = gpus_per_worker
        self._wait_s = wait_s
        self._candidate_s = candidate_s
        self._cluster: RayCluster | None = None
        self._fleet: Fleet | None = None

    @property
    def parallel(self) -> int:
        """The workers that are asked for, or for which this machine has cores and devices."""
        if self._workers is not None:
            return self._workers
        cores = (os.cpu_count() or 1) // max(torch.get_num_threads(), self._cpus)
        gpus = torch.cuda.device_count() if self._gpus is None else math.inf
        return int(max(1, min(cores, gpus or math.inf)))

    def pool(
        self, local: Pool[Any, Any], spec: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> Pool[Any, Any]:
        """Returns what spreads the tasks over the workers."""
        return RayPool(self._open(spec()), encode)

    def close(self) -> None:
        """Ends the workers, and Ray where it was started here."""
        if self._fleet is not None:
            self._fleet.close()
        if self._cluster is not None:
            self._cluster.close()
        self._fleet = self._cluster = None

    def _open(self, spec: WorkerSpec) -> Fleet:
        """Returns the workers, started or with a new spec."""
        if self._fleet is None:
            gpus = self._gpus
            if gpus is None:
                gpus = 1.0 if spec.device == "cuda" else 0.0
            most = self._workers or max(1, (os.cpu_count() or 1) // spec.threads)
            log.info("connecting to Ray (%s)", self._address or "a cluster of our own")
            try:
                self._cluster = RayCluster(self._address, self._cpus, gpus, most)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"execution.address={self._address}: {' '.join(str(error).split())}; start "
                    "Ray there with `ray start --head`, with the same RAY_AUTH_MODE everywhere, "
                    "or leave address out"
                ) from error
            size = self._workers or max(1, self._cluster.room())
            self._fleet = Fleet(
                self._cluster, size, wait_s=self._wait_s, candidate_s=self._candidate_s
            )
        self._fleet.use(spec)
        return self._fleet


class RayPool:
    """Gives the tasks of scoring and asking to a fleet, genomes as JSON values."""

    def __init__(self, fleet: Fleet, encode: Callable[[Any], Any]) -> None:
        self._fleet = fleet
        self._encode = encode

    @property
    def size(self) -> int:
        """As many as there are workers, dead ones that will be replaced included."""
        return self._fleet.size

    def submit(self, task: Batch[Any] | Question) -> int:
        """Hands a task to the fleet; see `Fleet.submit`."""
        if isinstance(task, Question):
            genome = self._encode(task.genome)
            return self._fleet.submit("ask", genome, task.requests, about=genome)
        genomes = [self._encode(genome) for genome in task.genomes]
        return self._fleet.submit("score", genomes, task.generation, candidates=len(genomes))

    def next(self) -> tuple[int, Any]:
        """Waits for a task to be done; see `Fleet.next`."""
        return self._fleet.next()

    def drop(self) -> None:
        """Forgets all tasks; see `Fleet.drop`."""
        self._fleet.drop()
