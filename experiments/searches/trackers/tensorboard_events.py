"""TensorBoard: ``tensorboard --logdir runs`` shows every run below it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from experiments.searches.trackers.stepped import SteppedTracker
from search.loop.history import Record


@dataclass
class TensorboardTracker(SteppedTracker):
    """Event files in ``RUN/tensorboard``: a record per candidate, and the configuration as text.

    A killed run loses what TensorBoard's writer had not flushed (2 minutes); a restart writes it.
    """

    extra: ClassVar[str] = "tensorboard"
    _writer: Any = field(default=None, init=False, repr=False)

    def _open(self, config: Mapping[str, Any], run_dir: Path, name: str) -> Collection[int]:
        from torch.utils.tensorboard.summary import text
        from torch.utils.tensorboard.writer import FileWriter

        folder = run_dir / "tensorboard"
        logged = _steps(folder)
        self._writer = FileWriter(str(folder))
        if not logged:
            lines = yaml.safe_dump(dict(config)).splitlines()
            indented = "".join(f"    {line}\n" for line in lines)
            self._writer.add_summary(text("config", indented), 0)  # type: ignore[no-untyped-call]
        return logged

    def _write(self, step: int, record: Record, metrics: Mapping[str, float]) -> None:
        self._add(metrics, step)

    def _close(self, step: int, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        if numbers:
            self._add(numbers, step)
        self._writer.close()

    def _add(self, numbers: Mapping[str, float], step: int) -> None:
        """Writes numbers as one record of the file, which is there or not, whole."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._writer.add_summary(Summary(value=values), step)


def _steps(folder: Path) -> set[int]:
    """Returns the candidates whose record is in one of the event files, read up to a cut."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    return {
        event.step
        for file in sorted(folder.glob("events.out.tfevents.*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        if {value.tag for value in event.summary.value} & {"failed", "result/fitness"}
    }
