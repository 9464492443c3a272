"""Ray, in the words of a fleet: the one file that imports it."""

import logging
import math
import os
import socket
from collections.abc import Sequence
from typing import Any

from experiments.scoring.distributed.fleet import WorkerLost
from experiments.scoring.distributed.worker import Worker

try:
    import ray
    from ray import exceptions
except ImportError as error:
    raise ImportError("execution=ray needs Ray: pip install 'evomerge[ray]'") from error

_LOST = (
    exceptions.RayActorError,
    exceptions.ActorUnschedulableError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
)
_ANSWER_S = 10.0  # for a head to take a connection
_STORE_BYTES = 100 * 2**20  # genomes, scores and answers are small; weights never come here


class RayCluster:
    """A Ray cluster of one's own on this machine, or one that is there already.

    Args:
        address: ``host:port`` of a cluster's head, or ``auto``; None: one of one's own.
        workers: for how many there shall be room in a cluster of one's own.

    Raises:
        ConnectionError: nothing answers at the address.
    """

    def __init__(self, address: str | None, cpus: float, gpus: float, workers: int) -> None:
        self._cpus, self._gpus = cpus, gpus
        self._connected = not ray.is_initialized()
        if self._connected:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options: dict[str, Any] = {}
            if address is not None:
                _check_answers(address)
            else:
                options = {
                    "num_cpus": max(1, math.ceil(workers * cpus)),
                    "include_dashboard": False,
                    "object_store_memory": _STORE_BYTES,
                }
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **options,
            )
        actor = ray.remote(Worker)
        self._actor = actor.options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,  # the fleet starts another one and says so
            scheduling_strategy="SPREAD",
        )

    def start(self) -> Any:
        """Returns an actor."""
        return self._actor.remote()

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Returns the reference of a call."""
        return getattr(worker, method).remote(*arguments)

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """Returns the references that are done."""
        done, rest = ray.wait(list(references), timeout=seconds)
        if rest:  # those that are done by now as well
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return list(done)

    def result(self, reference: Any) -> Any:
        """Returns what a call gave; what it raised is raised here as it was."""
        try:
            return ray.get(reference)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except _LOST as error:
            raise WorkerLost(" ".join(str(error).split())[:300]) from error

    def stop(self, worker: Any) -> None:
        """Kills an actor."""
        ray.kill(worker)

    def describe(self) -> str:
        """Returns the nodes' resources."""
        nodes = [f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in _alive()]
        asked = f"each asks for {self._cpus:g} CPUs and {self._gpus:g} GPUs"
        return f"{asked}; nodes with {'; '.join(nodes) or 'nothing'}"

    def room(self) -> int:
        """Returns how many workers the cluster's nodes can hold together."""
        asked = {"CPU": self._cpus, "GPU": self._gpus}
        return sum(
            int(min((has.get(kind, 0) / need for kind, need in asked.items() if need), default=1))
            for has in _alive()
        )

    def close(self) -> None:
        """Leaves the cluster; ends it where it is one's own."""
        if self._connected:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raises ConnectionError where nothing listens: Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return  # auto, and whatever else Ray may know
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error})") from error


def _alive() -> list[dict[str, float]]:
    """Returns the resources of every living node."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]
