"""What a command line overrides, as an experiment file."""

import re
import shlex
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from merging.files import write_text

_LEFT_OUT = ("experiment_file", "out", "runs", "cache")  # not what is searched


def write_experiment(run: Path, config: DictConfig) -> list[str]:
    """Writes ``RUN/experiment/NAME.yaml`` if the configuration wants it; returns how to run it."""
    if not config.experiment_file or not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    file = run / "experiment" / (re.sub(r"[^A-Za-z0-9_.-]", "-", str(config.name)) + ".yaml")
    command = shlex.join(
        ["evomerge", "search", "--config-dir", str(run), f"experiment={file.stem}"]
    )
    file.parent.mkdir(exist_ok=True)
    text = experiment_text(hydra.overrides.task, hydra.runtime.choices)
    write_text(file, text.replace("\n", f"\n# {command}\n", 1))
    gone = [word for word in hydra.overrides.task if word.startswith("~")]
    note = f"note        {', '.join(gone)}: has no place in that file; give it behind experiment="
    return [f"experiment  {command}", *([note] if gone else [])]


def experiment_text(words: Sequence[str], groups: Container[str]) -> str:
    """Returns the YAML of ``conf/experiment/NAME.yaml`` that says what `words` say.

    Args:
        words: overrides of one job; what they take away (``~NAME``) has no place in a file, which
            `write_experiment` says.
        groups: names of the parts that can be replaced, with their packages.
    """
    defaults: list[Any] = []
    values = OmegaConf.create()
    for override in OverridesParser.create().parse_overrides(list(words)):
        name = _name(override)
        if override.is_delete() or name in _LEFT_OUT:
            continue
        if name in groups:
            defaults.append(
                {f"{'' if override.is_add() else 'override '}/{name}": override.value()}
            )
        else:
            OmegaConf.update(values, name, override.value(), force_add=True)
    content = {"defaults": [*defaults, "_self_"], **OmegaConf.to_container(values)}  # type: ignore[dict-item]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=99)
    return f"# @package _global_\n{text}"


def _name(override: Override) -> str:
    package = f"@{override.package}" if override.package else ""
    return f"{override.key_or_group}{package}"
