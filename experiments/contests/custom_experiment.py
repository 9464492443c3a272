"""A study: an experiment with steps of its own, which its file names under the key ``study``."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Protocol

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.runs.directory import check_writable, locked
from experiments.runs.errors import UserError, explained

_NOT_IDENTITY = ("cache", "remarks", "results", "workers")
_OWN = ("experiment", "study", "name", "runs", "out", "cache", "device")


class StudyExperiment(Protocol):
    """What the ``_target_`` of ``study`` builds."""

    def plan(self, out: Path) -> str:
        """Returns in words what would be done, and what of it is done already."""
        ...

    def run(self, out: Path, command: str, *, plain: bool) -> None:
        """Does what is left of it.

        Args:
            out: directory of the run.
            command: that was given.
            plain: nothing but the experiment was named, so that its published page may be
                replaced.
        """
        ...


def check_study(config: DictConfig) -> None:
    """Builds a study and says what it would do.

    Raises:
        UserError: it cannot be built or started.
    """
    study, out = _open(config)
    print(f"{study.plan(out)}\nrun          {out}\nready")


def run_study(config: DictConfig) -> float:
    """Runs what is left of a study.

    Returns:
        0.

    Raises:
        UserError: it cannot be built or started.
    """
    study, out = _open(config)
    print(study.plan(out), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        study.run(out, _command(), plain=_is_plain())
    return 0.0


def _open(config: DictConfig) -> tuple[StudyExperiment, Path]:
    _refuse_options_of_searches()
    missing = sorted(OmegaConf.missing_keys(config.study))
    if missing:
        raise UserError(f"study.{missing[0]} is not set: give study.{missing[0]}=VALUE")
    own = f"{config.name}-{_identity(config.study)}"
    out = Path(config.out) if config.out else Path(config.runs) / own
    with explained():
        check_writable(out, "out" if config.out else "runs")
        study: StudyExperiment = instantiate(config.study, _convert_="all")
    return study, out


def _identity(study: DictConfig) -> str:
    """Returns 8 hexadecimal digits of all that changes the results."""
    resolved = OmegaConf.to_container(study, resolve=True)
    assert isinstance(resolved, dict)
    content = {key: value for key, value in resolved.items() if key not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _refuse_options_of_searches() -> None:
    """A study reads none of the options of a search, unless its file hands them on."""
    searches = compose("search") if HydraConfig.initialized() else {}
    for each in _given():
        key = each.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]
        if key in searches and key not in _OWN:
            raise UserError(f"{each} does not reach a study: change what stands below study")


def _given() -> list[str]:
    """Returns what the command line overrides."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _command() -> str:
    """Returns the command without what does not change the results."""
    hidden = ("runs=", "out=", "cache=")
    shown = [each for each in _given() if not each.startswith(hidden)]
    return shlex.join(["evomerge", "search", *shown])


def _is_plain() -> bool:
    free = ("experiment=", "+experiment=", "runs=", "out=", "cache=", "study.workers=")
    return all(each.startswith(free) for each in _given())
