"""Trackio: ``trackio show`` opens the dashboard, of this machine or of a Space."""

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from experiments.searches.trackers.stepped import SteppedTracker
from search.loop.history import Record


@dataclass
class TrackioTracker(SteppedTracker):
    """A run of a project, where Trackio keeps them (TRACKIO_DIR): a step per candidate.

    Args:
        space: of the Hugging Face Hub that shows the run; None: this machine alone.
        group: of runs, for example a sweep.
    """

    extra: ClassVar[str] = "trackio"
    project: str = "evomerge"
    space: str | None = None
    group: str | None = None
    _run: Any = field(default=None, init=False, repr=False)

    def _open(self, config: Mapping[str, Any], run_dir: Path, name: str) -> Collection[int]:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                self.project,
                name=name,
                group=self.group,
                space_id=self.space,
                private=True,
                config=dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        logs = SQLiteStorage.get_logs(self.project, name, run_id=self._run.id)
        return {line["step"] for line in logs}

    def _write(self, step: int, record: Record, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def _close(self, step: int, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        with redirect_stdout(sys.stderr):
            if numbers:
                self._run.log(dict(numbers), step=step)
            self._run.finish()
