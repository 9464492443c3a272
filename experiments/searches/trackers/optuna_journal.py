"""A search as an Optuna study: ``optuna-dashboard RUN/optuna.log`` shows it."""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from experiments.searches.trackers.stepped import SteppedTracker
from search.loop.history import Record

_WIDE = 1e6  # of a parameter whose range is not known yet
_MOST = 200  # numbers of a genome that become parameters


@dataclass
class OptunaTracker(SteppedTracker):
    """The study in the journal ``RUN/optuna.log``, a trial per candidate.

    It holds fitness, scores and, as ``x0``, ``x1`` ..., the genome.

    The range of a parameter is known only at the end, when the trials are written once more with
    it: the dashboard's importance of parameters means nothing before. Paths, trees and genomes of
    more than 200 numbers are no parameters.
    """

    extra: ClassVar[str] = "optuna"
    _storage: Any = field(default=None, init=False, repr=False)
    _name: str = field(default="", init=False, repr=False)
    _config: Mapping[str, Any] = field(default_factory=dict, init=False, repr=False)
    _study: Any = field(default=None, init=False, repr=False)
    _told: list[Record] = field(default_factory=list, init=False, repr=False)
    _waiting: list[Record] = field(default_factory=list, init=False, repr=False)

    def log(self, record: Record, replayed: bool) -> None:
        """Adds a trial, unless an earlier start has; see `Tracker.log`."""
        self._told.append(record)
        super().log(record, replayed)

    def _open(self, config: Mapping[str, Any], run_dir: Path, name: str) -> Collection[int]:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._name, self._config, self._study = name, config, None
        self._told, self._waiting = [], []
        journal = _mended(run_dir / "optuna.log")
        self._storage = JournalStorage(JournalFileBackend(str(journal)))
        if name in optuna.get_all_study_names(self._storage):
            self._study = optuna.load_study(study_name=name, storage=self._storage)
        return () if self._study is None else range(len(self._study.trials))

    def _write(self, step: int, record: Record, metrics: Mapping[str, float]) -> None:
        """Adds a trial; those that failed wait until a fitness tells how many objectives."""
        self._waiting.append(record)
        if self._study is None and record.fitness is not None:
            self._make(len(record.fitness))
        if self._study is not None:
            self._add(self._waiting, {})
            self._waiting = []

    def _close(self, step: int, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        """Writes the study anew, its parameters with the range of what was tried."""
        import optuna

        if self._study is None:
            return
        objectives = len(self._study.directions)
        optuna.delete_study(study_name=self._name, storage=self._storage)
        self._make(objectives)
        tried: dict[str, list[float]] = {}
        for record in self._told:
            for name, value in _parameters(record.genome).items():
                tried.setdefault(name, []).append(value)
        self._add(self._told, {name: (min(v), max(v)) for name, v in tried.items()})
        for name, value in numbers.items():
            self._study.set_user_attr(name, value)

    def _make(self, objectives: int) -> None:
        import optuna

        self._study = optuna.create_study(
            storage=self._storage, study_name=self._name, directions=["maximize"] * objectives
        )
        self._study.set_user_attr("configuration", dict(self._config))

    def _add(self, records: Sequence[Record], ranges: Mapping[str, tuple[float, float]]) -> None:
        self._study.add_trials([_trial(record, ranges) for record in records])


def _mended(journal: Path) -> Path:
    """Takes away what a killed start has left: its lock, and the last line if it was cut off."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        lines = journal.read_bytes()
        os.truncate(journal, lines.rfind(b"\n") + 1)
    return journal


def _trial(record: Record, ranges: Mapping[str, tuple[float, float]]) -> Any:
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState, create_trial

    params = _parameters(record.genome)
    scores = {key: value for key, value in record.scores.items() if math.isfinite(value)}
    told = {"id": record.id, "failure": record.failure, "same_as": record.same_as}
    trial = create_trial(
        state=TrialState.FAIL if record.fitness is None else TrialState.COMPLETE,
        values=None if record.fitness is None else record.fitness.tolist(),
        params=params,
        distributions={n: FloatDistribution(*ranges.get(n, (-_WIDE, _WIDE))) for n in params},
        user_attrs={**scores, **{k: value for k, value in told.items() if value is not None}},
    )
    if math.isfinite(record.seconds):
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=record.seconds)
    return trial


def _parameters(genome: Any) -> dict[str, float]:
    """Returns the numbers of a genome that is a short list of them."""
    if not isinstance(genome, list) or len(genome) > _MOST:
        return {}
    return {f"x{i}": float(value) for i, value in enumerate(genome)}
