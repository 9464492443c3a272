"""An experiment with steps of its own, which its file names under the key ``procedure``."""

import hashlib
import json
from pathlib import Path
from typing import Protocol

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.runs.directory import check_writable, locked
from experiments.runs.errors import UserError, explained
from experiments.suites.command_line import only_experiment_named, overrides_given, shown_command

_NOT_IDENTITY = ("cache", "remarks", "results", "workers")
_OWN = ("experiment", "procedure", "name", "runs", "out", "cache", "device")


class Procedure(Protocol):
    """What the ``_target_`` of ``procedure`` builds."""

    def plan(self, out: Path) -> str:
        """Returns in words what would be done, and what of it is done already."""
        ...

    def run(self, out: Path, command: str, *, plain: bool) -> None:
        """Does what is left of it.

        Args:
            plain: nothing but the experiment was named, so that its published page may be
                replaced.
        """
        ...


def check_procedure(config: DictConfig) -> None:
    """Builds a procedure and says what it would do; raises UserError where it cannot start."""
    procedure, out = _open(config)
    print(f"{procedure.plan(out)}\nrun          {out}\nready")


def run_procedure(config: DictConfig) -> float:
    """Runs what is left of a procedure, and returns 0; raises UserError where it cannot start."""
    procedure, out = _open(config)
    print(procedure.plan(out), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        procedure.run(out, shown_command(), plain=only_experiment_named("procedure.workers="))
    return 0.0


def _open(config: DictConfig) -> tuple[Procedure, Path]:
    _refuse_options_of_searches()
    missing = sorted(OmegaConf.missing_keys(config.procedure))
    if missing:
        raise UserError(f"procedure.{missing[0]} is not set: give procedure.{missing[0]}=VALUE")
    name = f"{config.name}-{_identity(config.procedure)}"
    out = Path(config.out) if config.out else Path(config.runs) / name
    with explained():
        check_writable(out, "out" if config.out else "runs")
        procedure: Procedure = instantiate(config.procedure, _convert_="all")
    return procedure, out


def _identity(content: DictConfig) -> str:
    """Returns 8 hexadecimal digits of all that changes the results."""
    resolved = OmegaConf.to_container(content, resolve=True)
    assert isinstance(resolved, dict)
    decisive = {key: value for key, value in resolved.items() if key not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def _refuse_options_of_searches() -> None:
    """A procedure reads none of the options of a search, unless its file hands them on."""
    searches = compose("search") if HydraConfig.initialized() else {}
    for override in overrides_given():
        key = override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]
        if key in searches and key not in _OWN:
            raise UserError(
                f"{override} does not reach a procedure: change what stands below procedure"
            )
