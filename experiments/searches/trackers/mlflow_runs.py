"""MLflow: ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db``, or a server of many runs."""

import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from experiments.runs.directory import flatten
from experiments.runs.errors import UserError
from experiments.searches.trackers.stepped import SteppedTracker
from search.loop.history import Record

_AT_ONCE = 100  # most parameters that one request may hold
_LONGEST = 6000  # characters of a parameter


@dataclass
class MlflowTracker(SteppedTracker):
    """A run in an experiment: options as parameters, a step per candidate, result, recipe.

    Args:
        uri: of the tracking server or database; None: MLFLOW_TRACKING_URI, else ``RUN/mlflow.db``.
        experiment: that the run belongs to.
    """

    extra: ClassVar[str] = "mlflow"
    uri: str | None = None
    experiment: str = "evomerge"
    _client: Any = field(default=None, init=False, repr=False)
    _run: str = field(default="", init=False, repr=False)

    def _open(self, config: Mapping[str, Any], run_dir: Path, name: str) -> Collection[int]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves unasked
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        own = None if self.uri or os.environ.get("MLFLOW_TRACKING_URI") else run_dir
        try:
            self._client = MlflowClient(f"sqlite:///{own}/mlflow.db" if own else self.uri)
            self._run = self._opened(name, None if own is None else own / "mlflow")
            options = {_key(key): str(value)[:_LONGEST] for key, value in flatten(config).items()}
            held = self._client.get_run(self._run).data.params  # which cannot change
            params = [Param(*pair) for pair in options.items() if pair[0] not in held]
            for first in range(0, len(params), _AT_ONCE):
                self._client.log_batch(self._run, params=params[first : first + _AT_ONCE])
            marks = ("failed", "result/fitness")
            found = [self._client.get_metric_history(self._run, mark) for mark in marks]
            return {metric.step for metrics in found for metric in metrics}
        except MlflowException as error:
            raise UserError(
                f"tracker: MLflow cannot be reached ({error}): correct tracker.uri, or set "
                "tracker=none"
            ) from error

    def _opened(self, name: str, artifacts: Path | None) -> str:
        """Returns the id of the run that has a name, which is made where there is none."""
        found = self._client.get_experiment_by_name(self.experiment)
        place = None if artifacts is None else artifacts.as_uri()
        experiment = (
            self._client.create_experiment(self.experiment, artifact_location=place)
            if found is None
            else found.experiment_id
        )
        known = self._client.search_runs([experiment], f"tags.`evomerge.run` = '{name}'")
        if known:
            self._client.update_run(known[0].info.run_id, status="RUNNING")
            return str(known[0].info.run_id)
        made = self._client.create_run(experiment, run_name=name, tags={"evomerge.run": name})
        return str(made.info.run_id)

    def _write(self, step: int, record: Record, metrics: Mapping[str, float]) -> None:
        self._log(metrics, step)

    def _close(self, step: int, numbers: Mapping[str, float], files: Sequence[Path]) -> None:
        if numbers:
            self._log(numbers, step)
        for file in files:
            self._client.log_artifact(self._run, str(file))
        self._client.set_terminated(self._run)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        """Writes a step, whole or not at all: a request is one transaction."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 10**6
        metrics = [Metric(_key(key), value, now_ms, step) for key, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)


def _key(name: str) -> str:
    """Returns a name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)
