"""What a tracker is told of a search on private items: all of it at its end, and no times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.searches.tracking import Tracker
from search.loop.history import Record


class DeferredTracker:
    """Tells another tracker of all candidates once the search is over.

    How long a candidate took tells how many items were sampled, and trackers note when they are
    told of one. Its seconds are given as 0.

    Args:
        tracker: the other one.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._told: list[tuple[Record, bool]] = []

    def start(self, config: Mapping[str, Any], run_dir: Path, run_id: str) -> None:
        """Opens the run; see `Tracker.start`."""
        self._told = []
        self._tracker.start(config, run_dir, run_id)

    def log(self, record: Record, replayed: bool) -> None:
        """Keeps one candidate for `finish`; see `Tracker.log`."""
        self._told.append((replace(record, seconds=0.0), replayed))

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Tells of all candidates and closes the run; see `Tracker.finish`."""
        for record, replayed in self._told:
            self._tracker.log(record, replayed)
        self._tracker.finish(summary, files)
