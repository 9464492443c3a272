"""Sweeps: the check before the first job, and the jobs that were refused, named at the end."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
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
        del kwargs
        file = Path(os.environ.pop(_REFUSED))
        refused = sorted(jsonl.read(file), key=lambda line: int(line["id"]))
        file.unlink(missing_ok=True)
        given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        fixed = {_name(str(o.input_line)) for o in given if not o.is_sweep_override()}
        for line in refused:
            own = " ".join(each for each in line["options"] if _name(each) not in fixed)
            print(f"{sys.argv[0]}: job #{line['id']} ({own}): {line['why']}", file=sys.stderr)
        if refused:
            sys.exit(2)


def _name(override: str) -> str:
    return override.partition("=")[0]


@contextmanager
def job(command: str) -> Iterator[None]:
    """As `one_sentence`; but in a sweep the other jobs go on, and its end tells of this one."""
    with one_sentence(command):
        try:
            yield
        except UserError as error:
            file = os.environ.get(_REFUSED)
            if file is None or (own := HydraConfig.get()).mode != RunMode.MULTIRUN:
                raise
            print(f"{command}: {error}", file=sys.stderr)
            line = {"id": own.job.num, "options": list(own.overrides.task), "why": str(error)}
            jsonl.append(Path(file), line)
