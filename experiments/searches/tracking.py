"""Trackers: who is told of every evaluation while a search runs."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from experiments.runs.errors import UserError
from experiments.runs.model_scores import models_of
from experiments.searches import wandb_log
from search.loop.history import Record

_MODES = ("offline", "online", "disabled")


@runtime_checkable
class Tracker(Protocol):
    """Told of one run: `start`, one `log` per candidate in the order of tells, `finish`."""

    def start(self, config: Mapping[str, Any], run_dir: Path, run_id: str) -> None:
        """Opens the run, or the same run again after a restart.

        Args:
            config: the resolved configuration, plain JSON values.
            run_dir: exists; what the tracker writes goes below it, unless its library has a place
                of its own or the user names one.
            run_id: identity of the run, the same after a restart.

        Raises:
            UserError: the tracker cannot be reached; says what to do.
        """
        ...

    def log(self, record: Record, replayed: bool) -> None:
        """Takes one candidate; `replayed`: it comes from the history of an earlier start."""
        ...

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Takes the content of ``summary.json`` and the result's files, and closes the run."""
        ...


class NoTracker:
    """Tells nobody."""

    def start(self, config: Mapping[str, Any], run_dir: Path, run_id: str) -> None:
        """Does nothing."""

    def log(self, record: Record, replayed: bool) -> None:
        """Does nothing."""

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Does nothing."""


class DeferredTracker:
    """Tells another tracker of all candidates once the search is over.

    How long a candidate took tells of its items, and trackers note when they are opened and told
    of one. Its seconds are NaN: not known.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._start: Callable[[], None] = lambda: None
        self._told: list[tuple[Record, bool]] = []

    def start(self, config: Mapping[str, Any], run_dir: Path, run_id: str) -> None:
        """Keeps what `finish` opens the run with; see `Tracker.start`."""
        self._told = []
        self._start = partial(self._tracker.start, config, run_dir, run_id)

    def log(self, record: Record, replayed: bool) -> None:
        """Keeps one candidate for `finish`; see `Tracker.log`."""
        self._told.append((replace(record, seconds=math.nan), replayed))

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Opens the run, tells of all candidates and closes it; see `Tracker.finish`."""
        self._start()
        for record, replayed in self._told:
            self._tracker.log(record, replayed)
        self._tracker.finish(summary, files)


@dataclass
class WandbTracker:
    """Weights & Biases: configuration, a step per candidate, candidate table, result, artifacts.

    The environment variable ``WANDB_MODE`` wins over `mode`. Everything is written to
    ``RUN/wandb``; offline runs are uploaded with ``wandb sync RUN/wandb/offline-run-*``, the
    fragments of a run that was killed and continued in order of their start.

    A restart continues the W&B run of the same id and logs only the steps that are missing: online
    those that the server lacks, offline those that had not reached the disk (W&B buffers 32 KiB;
    its own process outlives a killed run by moments, in which a restart may log a few twice).

    Args:
        mode: ``offline``, ``online`` or ``disabled``.
        entity: user or team; None: the user's default.
        group: of runs, for example a sweep.
        name: display name; None: the run directory's.

    Raises:
        ValueError: an unknown mode.
    """

    mode: str = "offline"
    project: str = "evomerge"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: Sequence[str] = ()
    _run: Any = field(default=None, init=False, repr=False)
    _run_dir: Path = field(default=Path(), init=False, repr=False)
    _logged: frozenset[int] = field(default=frozenset(), init=False, repr=False)
    _records: list[Record] = field(default_factory=list, init=False, repr=False)
    _best: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"tracker.mode {self.mode!r} is none of {', '.join(_MODES)}")

    def start(self, config: Mapping[str, Any], run_dir: Path, run_id: str) -> None:
        """Opens the W&B run `run_id`, new or continued; see `Tracker.start`."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        self._logged = _logged_offline(run_dir, run_id)
        self._records, self._best, self._run_dir = [], None, run_dir
        try:
            self._run = wandb.init(
                mode=mode,
                project=self.project,
                entity=self.entity,
                group=self.group,
                name=self.name or run_dir.name,
                tags=list(self.tags),
                id=run_id,
                resume="allow",
                dir=run_dir,
                config=dict(config),
                settings=wandb.Settings(
                    silent=mode != "online",
                    console="off",
                    x_disable_stats=True,
                    reinit="finish_previous",  # a sweep runs several searches in one process
                ),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"tracker: W&B cannot be reached ({error}): run `wandb login`, or set "
                "tracker.mode=offline or tracker=none"
            ) from error
        if self._run.step:  # online, continued: the server says which step comes next
            self._logged |= frozenset(range(self._run.step))

    def log(self, record: Record, replayed: bool) -> None:
        """Logs one step, unless an earlier start has; see `Tracker.log`.

        Raises:
            RuntimeError: `start` was not called.
        """
        run = self._opened()
        step = len(self._records)  # W&B takes rising ones alone: ids need not be
        self._records.append(record)
        if record.fitness is not None:
            highest = float(record.fitness[0])
            self._best = highest if self._best is None else max(self._best, highest)
        if not (replayed and step in self._logged):
            run.log(step_metrics(record, self._best), step=step, commit=True)

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Logs candidate table, result and files, and closes the run; see `Tracker.finish`.

        Raises:
            RuntimeError: `start` was not called.
        """
        import wandb

        run = self._opened()
        columns, rows = candidate_table(self._records)
        with _staged_below(self._run_dir):
            table = wandb.Table(columns=list(columns), data=rows)
            run.log({"candidates": table}, step=len(self._records), commit=True)
            for path in files:
                artifact = wandb.Artifact(f"{path.stem}-{run.id}", type=path.stem)
                artifact.add_file(str(path.resolve()), name=path.name, policy="immutable")
                run.log_artifact(artifact)
            run.summary.update(result_numbers(summary))
            run.finish()
        self._run = None

    def _opened(self) -> Any:
        if self._run is None:
            raise RuntimeError("the tracker is not started: call start before log and finish")
        return self._run


def step_metrics(record: Record, best: float | None) -> dict[str, float]:
    """Returns what one step holds; the best fitness is the first objective's."""
    metrics = {**record.scores, "failed": float(record.failure is not None)}
    metrics["repeated"] = float(record.same_as is not None)
    if not math.isnan(record.seconds):
        metrics["seconds"] = record.seconds
    if record.fitness is not None:
        names = _fitness_columns(len(record.fitness))
        metrics |= dict(zip(names, record.fitness.tolist(), strict=True))
    if best is not None:
        metrics["best_fitness"] = best
    return metrics


def _fitness_columns(objectives: int) -> list[str]:
    return ["fitness"] if objectives == 1 else [f"fitness_{i + 1}" for i in range(objectives)]


def candidate_table(records: Sequence[Record]) -> tuple[list[str | int], list[list[Any]]]:
    """Returns columns and rows of all candidates: id, genome as JSON, fitness, scores, failure."""
    scores = list(dict.fromkeys(name for record in records for name in record.scores))
    objectives = max((len(r.fitness) for r in records if r.fitness is not None), default=1)
    fitness = _fitness_columns(objectives)
    rows = [
        [
            record.id,
            json.dumps(record.genome),
            *([None] * objectives if record.fitness is None else record.fitness.tolist()),
            *(record.scores.get(name) for name in scores),
            record.failure,
            record.same_as,
        ]
        for record in records
    ]
    return ["id", "genome", *fitness, *scores, "failure", "same_as"], rows


def result_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a ``summary.json`` by path: ``result/base/report/fitness``."""
    numbers = {
        f"result/{key}": value
        for key, value in summary.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    for model in models_of(summary):
        for split, scores in model.scores.items():
            fitness = scores.fitness or ()
            values = dict(zip(_fitness_columns(len(fitness)), fitness, strict=True))
            values |= scores.scores
            numbers |= {f"result/{model.name}/{split}/{key}": v for key, v in values.items()}
    return numbers


def _logged_offline(run_dir: Path, run_id: str) -> frozenset[int]:
    """Returns the steps of this run that earlier starts have brought to the disk."""
    logs = sorted((run_dir / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    return frozenset(step for path in logs for step in wandb_log.steps(path))


@contextmanager
def _staged_below(run_dir: Path) -> Iterator[None]:
    """Lets W&B keep its copies of artifacts in ``run_dir/wandb`` and not in the home directory.

    An offline run is uploaded from these copies later. W&B knows this setting only as an
    environment variable; the user's own wins, and the environment is left as it was.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(run_dir.resolve() / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
