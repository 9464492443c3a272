"""Candidates scored by Ray's workers: many devices, many nodes, the same results."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from experiments.runs.errors import UserError
from experiments.scoring.distributed.cluster import RayCluster
from experiments.scoring.distributed.fleet import Fleet
from experiments.scoring.distributed.worker import as_evaluated
from experiments.setup.asking import Answer, RaceFactory
from experiments.setup.execution import WorkerSpec
from search.loop.evaluation import Evaluated, Evaluation, units
from search.loop.history import Record
from search.loop.steady import WorkerPool

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

    Raises:
        ValueError: an option without meaning.
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
        self._workers, self._address = workers, address
        self._cpus, self._gpus = cpus_per_worker, gpus_per_worker
        self._wait_s, self._candidate_s = wait_s, candidate_s
        self._cluster: RayCluster | None = None
        self._fleet: Fleet | None = None

    def evaluation(
        self, own: Evaluation[Any], order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> Evaluation[Any]:
        """Returns what spreads every generation over the workers."""
        fleet = self._open(order())
        return RayEvaluation(fleet, encode, own_items=own.own_items, unit=own.unit)

    def bench(
        self, own: Evaluation[Any], order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> WorkerPool[Any]:
        """Returns what keeps every worker busy."""
        return RayPool(self._open(order()), encode)

    def opening(
        self, own: RaceFactory, order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> RaceFactory:
        """Returns what lets the workers ask the candidates of races."""
        return partial(RayRaceClient, self._open(order()), encode)

    def close(self) -> None:
        """Ends the workers, and Ray where it was started here."""
        if self._fleet is not None:
            self._fleet.close()
        if self._cluster is not None:
            self._cluster.close()
        self._fleet = self._cluster = None

    def _open(self, order: WorkerSpec) -> Fleet:
        """Returns the workers, started or with a new order."""
        if self._fleet is None:
            gpus = self._gpus
            if gpus is None:
                gpus = 1.0 if order.device == "cuda" else 0.0
            own = self._workers or max(1, (os.cpu_count() or 1) // order.threads)
            log.info("connecting to Ray (%s)", self._address or "a cluster of our own")
            try:
                self._cluster = RayCluster(self._address, self._cpus, gpus, own)
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
        self._fleet.use(order)
        return self._fleet


class RayEvaluation:
    """Spreads the candidates of a generation over a fleet.

    Args:
        fleet: its workers have the order of the study.
        encode: genome to JSON values.
        own_items: whether every generation is scored on items of its own.
        unit: how many genomes in a row one worker scores together.
    """

    def __init__(
        self,
        fleet: Fleet,
        encode: Callable[[Any], Any],
        *,
        own_items: bool = False,
        unit: int = 1,
    ) -> None:
        self._fleet, self._encode, self.own_items, self.unit = fleet, encode, own_items, unit

    def __call__(
        self, genomes: Sequence[Any], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what each gave, in the order of the genomes; see `Evaluation`."""
        fleet = self._fleet
        encoded = [self._encode(each) for each in genomes]
        tickets = {
            fleet.submit("score", [encoded[i] for i in places], generation): places
            for places in units(len(genomes), self.unit, first)
        }
        done: dict[int, list[Evaluated]] = {}
        try:
            for ticket, places in tickets.items():
                while ticket not in done:
                    found, answer = fleet.next()
                    done[found] = [as_evaluated(each) for each in answer]
                yield from done.pop(ticket)[max(0, first - places.start) :]
        finally:
            fleet.drop()


class RayPool:
    """Gives every worker of a fleet a candidate of its own; see `search.loop.steady.WorkerPool`.

    Args:
        fleet: its workers have the order of the study.
        encode: genome to JSON values.
    """

    def __init__(self, fleet: Fleet, encode: Callable[[Any], Any]) -> None:
        self._fleet, self._encode = fleet, encode

    @property
    def places(self) -> int:
        """As many as there are workers, dead ones that will be replaced included."""
        return self._fleet.size

    def submit(self, genome: Any) -> int:
        """Puts a genome last in the line; returns its ticket."""
        return self._fleet.submit("score", [self._encode(genome)], 0)

    def next(self) -> tuple[int, Evaluated]:
        """Waits for a genome to be done."""
        ticket, (found,) = self._fleet.next()
        return ticket, as_evaluated(found)


class RayRaceClient:
    """Lets the workers of a fleet ask the candidates of one generation; see `Asking`.

    A worker that holds a candidate's weights from the stage before is given the same one again.

    Args:
        fleet: its workers have the order of the study.
        encode: genome to JSON values.
        genomes: of the generation.
    """

    def __init__(self, fleet: Fleet, encode: Callable[[Any], Any], genomes: Sequence[Any]) -> None:
        self._fleet, self._encoded = fleet, [encode(each) for each in genomes]

    def __call__(self, numbers: Sequence[int], slots: tuple[int, ...]) -> dict[int, Answer]:
        """Returns the answers by number; see `Asking`."""
        fleet, encoded = self._fleet, self._encoded
        order = sorted(numbers, key=lambda number: (not fleet.holds(encoded[number]), number))
        answers: dict[int, Answer] = {}
        try:
            tickets = {
                fleet.submit("ask", encoded[number], slots, about=encoded[number]): number
                for number in order
            }
            while len(answers) < len(tickets):
                ticket, answer = fleet.next()
                answers[tickets[ticket]] = answer
        finally:
            fleet.drop()
        return answers
