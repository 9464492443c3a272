"""What trackers have in common that write a step per candidate."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from experiments.runs.errors import UserError
from experiments.searches.tracking import result_numbers, step_metrics
from search.loop.history import Record


@dataclass
class SteppedTracker(ABC):
    """Writes every candidate once, however often the run is started.

    Its step is the place of its tell, which is its line in ``history.jsonl``: an asynchronous
    search tells ids in another order, and drops some.

    Attributes:
        extra: that brings the library.
    """

    extra: ClassVar[str]
    _logged: Collection[int] = field(default=(), init=False, repr=False)
    _best: float | None = field(default=None, init=False, repr=False)
    _after: int = field(default=0, init=False, repr=False)

    def start(self, config: Mapping[str, Any], run_dir: Path, run_id: str) -> None:
        """Opens the run, or the same run again; see `Tracker.start`."""
        self._best, self._after = None, 0
        name = run_dir.name if run_id[:8] in run_dir.name else f"{run_dir.name}-{run_id[:8]}"
        try:
            self._logged = self._open(config, run_dir.resolve(), name)
        except ImportError as error:
            raise UserError(
                f"tracker={self.extra}: {error}: pip install -e '.[{self.extra}]', or set "
                "tracker=none"
            ) from error

    def log(self, record: Record, replayed: bool) -> None:
        """Writes one step, unless an earlier start has; see `Tracker.log`."""
        if record.fitness is not None:
            highest = float(record.fitness[0])
            self._best = highest if self._best is None else max(self._best, highest)
        step, self._after = self._after, self._after + 1
        if step not in self._logged:
            self._write(step, record, step_metrics(record, self._best))

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Writes the result after the last step, unless it is there; see `Tracker.finish`."""
        numbers = {} if self._after in self._logged else result_numbers(summary)
        self._close(self._after, numbers, files)

    @abstractmethod
    def _open(self, config: Mapping[str, Any], run_dir: Path, name: str) -> Collection[int]:
        """Opens the run of a name that no other run has; returns the steps that it holds.

        The step after the last candidate is that of the result.
        """

    @abstractmethod
    def _write(self, step: int, record: Record, metrics: Mapping[str, float]) -> None:
        """Writes one step, in one piece where a process may be killed."""

    @abstractmethod
    def _close(self, step: int, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        """Writes the result, if there are numbers, as `step`, and closes the run."""
