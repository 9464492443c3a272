"""The interface of an execution, and the plain one: this process scores every candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from experiments.setup.asking import RaceFactory
from search.loop.evaluation import Evaluation
from search.loop.steady import LocalPool, WorkerPool


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker elsewhere makes its study of; plain values, no weights.

    Args:
        config: of the run, resolved, as YAML; base and experts by name.
        start: describes the plan that the search starts from; None: the space's own start.
        base: sha256 of the base.
        experts: name to sha256.
        directory: that relative paths start from.
        device: ``cpu``, ``cuda`` or ``mps``: what this process computes on.
        threads: of torch in this process; sums depend on it.
    """

    config: str
    start: Mapping[str, Any] | None
    base: str
    experts: Mapping[str, str]
    directory: str
    device: str
    threads: int


class Execution(Protocol):
    """Scores candidates somewhere; the same seed gives the same scores wherever it is.

    Attributes:
        elsewhere: whether candidates are scored by other processes.
    """

    elsewhere: bool

    def evaluation(
        self, own: Evaluation[Any], order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> Evaluation[Any]:
        """Returns what scores whole generations.

        Args:
            own: how this process scores them.
            order: how another process makes what `own` uses.
            encode: genome to JSON values.
        """
        ...

    def bench(
        self, own: Evaluation[Any], order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> WorkerPool[Any]:
        """Returns what scores single candidates, some at a time; arguments as `evaluation`."""
        ...

    def opening(
        self, own: RaceFactory, order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> RaceFactory:
        """Returns what asks the candidates of races; arguments as `evaluation`."""
        ...

    def close(self) -> None:
        """Lets go of every process; called at the end of a run, however it ends."""
        ...


class Local:
    """This process scores every candidate with its own resident model."""

    elsewhere = False

    def evaluation(
        self, own: Evaluation[Any], order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> Evaluation[Any]:
        """Returns `own`."""
        return own

    def bench(
        self, own: Evaluation[Any], order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> WorkerPool[Any]:
        """Returns what scores one candidate after the other."""
        return LocalPool(lambda genome: next(own([genome], 0, (), 0)))

    def opening(
        self, own: RaceFactory, order: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> RaceFactory:
        """Returns `own`."""
        return own

    def close(self) -> None:
        """Nothing to let go of."""
