"""The check before a sweep: Hydra itself writes below `runs` before the first job starts."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.runs.directory import check_writable
from experiments.runs.errors import one_sentence


class SweepCheck(Callback):
    """Ends a sweep whose `runs` cannot be written, as a single run ends."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with status 2 and one sentence unless ``config.runs`` can be made and filled."""
        del kwargs
        with one_sentence(sys.argv[0]):
            check_writable(Path(config.runs), "runs")
