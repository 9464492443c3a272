"""Sweeps: the check before the first job, and the jobs that were refused, named at the end."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError, one_sentence
from search.loop import jsonl

_REFUSED = "EVOMERGE_REFUSED_JOBS"  # names the file to the jobs, wherever a launcher starts them


class SweepCheck(Callback):
    """Ends a sweep whose `runs` cannot be written, as a single run ends; names refused jobs.

    Hydra itself writes below `runs` before the first job starts.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with status 2 and one sentence unless ``config.runs`` can be made and filled."""
        del kwargs
        with one_sentence(sys.argv[0]):
            check_writable(Path(config.runs), "runs")
        file = Path(config.runs) / f".refused-{platform.node()}-{os.getpid()}.jsonl"
        os.environ[_REFUSED] = str(file.absolute())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with status 2 and a sentence for each job that was refused, if there is one."""
        del config, kwargs
        file = Path(os.environ.pop(_REFUSED))
        refused = sorted(jsonl.read(file), key=lambda line: int(line["id"]))
        file.unlink(missing_ok=True)
        for line in refused:
            print(
                f"{sys.argv[0]}: job #{line['id']} ({line['what']}): {line['why']}",
                file=sys.stderr,
            )
        if refused:
            sys.exit(2)


@contextmanager
def job(command: str) -> Iterator[None]:
    """As `one_sentence`; but in a sweep the other jobs go on, and its end tells of this one."""
    with one_sentence(command):
        try:
            yield
        except UserError as error:
            if not (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN):
                raise
            print(f"{command}: {error}", file=sys.stderr)
            own = HydraConfig.get()
            line = {"id": own.job.num, "what": " ".join(own.overrides.task), "why": str(error)}
            jsonl.append(Path(os.environ[_REFUSED]), line)
