"""The interface of an execution, and the plain one: this process scores every candidate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from search.loop.pool import Pool


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker elsewhere makes its ingredients of; plain values, no weights.

    Args:
        config: of the run, resolved, as YAML; base and experts by name.
        start: describes the plan that the search starts from; None: the space's own start.
        items: task to the digest of its search items, in the order of the tasks.
        directory: that relative paths start from.
        device: ``cpu``, ``cuda`` or ``mps``: what this process computes on.
        threads: of torch in this process; sums depend on it.
    """

    config: str
    start: Mapping[str, Any] | None
    base: str
    experts: Mapping[str, str]
    items: Mapping[str, str]
    directory: str
    device: str
    threads: int


class Execution(Protocol):
    """Scores candidates somewhere; the same seed gives the same scores wherever it is.

    Attributes:
        elsewhere: whether candidates are scored by other processes.
    """

    elsewhere: bool

    @property
    def parallel(self) -> int:
        """How many candidates are expected to be scored at a time."""
        ...

    def pool(
        self, local: Pool[Any, Any], spec: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> Pool[Any, Any]:
        """Returns what works on tasks of scoring or asking.

        Args:
            local: works on them in this process.
            spec: how another process makes what `local` uses.
        """
        ...

    def close(self) -> None:
        """Lets go of every process; called at the end of a run, however it ends."""
        ...


class Local:
    """This process scores every candidate with its own resident model."""

    elsewhere = False
    parallel = 1

    def pool(
        self, local: Pool[Any, Any], spec: Callable[[], WorkerSpec], encode: Callable[[Any], Any]
    ) -> Pool[Any, Any]:
        """Returns `local`."""
        return local

    def close(self) -> None:
        """Nothing to let go of."""
