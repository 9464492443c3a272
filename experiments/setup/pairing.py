"""Which strategies can search which spaces: refused by name, before anything is opened."""

import inspect
import json
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.runs.choices import choices, listed, texts
from experiments.runs.errors import UserError
from experiments.setup.assemble import open_part

_SEARCHED = {
    "axes": "numbers along axes",
    "starts": "paths through all weights",
    "founders": "lineage trees",
}
DEFAULTS = {  # of the parts that a space may ignore
    "method": "merging.methods.task_arithmetic.TaskArithmetic",
    "grouping": "merging.grouping.Whole",
    "noise": "merging.paths.noise.GaussianNoise",
}


def check_pair(entries: DictConfig) -> None:
    """Compares what a strategy has to know with what a space gives; builds neither.

    Args:
        entries: a ``space`` and a ``strategy``.

    Raises:
        UserError: they cannot go together; names both and what goes with each.
    """
    build_strategy: partial[Any] = open_part(entries.strategy)
    space_class: Any = open_part(entries.space).func
    gives: tuple[str, ...] = space_class.gives
    lacking = [name for name in _required(build_strategy) if name not in gives]
    if not lacking:
        return
    strategy, space = build_strategy.func.__name__, space_class.__name__
    spaces = choices("space", lambda found: lacking[0] in found.gives)
    strategies = choices("strategy", lambda found: gives[0] in inspect.signature(found).parameters)
    raise UserError(
        f"strategy {strategy} searches {_SEARCHED.get(lacking[0], lacking[0])}, which {space} has "
        f"none of: choose space={spaces}, or for {space} a strategy such as {strategies}"
    )


def check_used(config: DictConfig) -> None:
    """Refuses a method, grouping or noise that the space does not read.

    Raises:
        UserError: one was chosen; names it, the space and what reads it.
    """
    read = json.dumps(OmegaConf.to_container(config.space, resolve=False))
    for part, default in DEFAULTS.items():
        chosen, reference = str(config[part]["_target_"]), f"${{{part}}}"
        if chosen != default and reference not in read:
            space = str(config.space["_target_"]).rpartition(".")[2]
            readers = [name for name, text in texts("space").items() if reference in text]
            raise UserError(
                f"{part} {chosen.rpartition('.')[2]} has no effect in {space}: leave {part}= out, "
                f"or choose space={listed(readers)}"
            )


def _required(build: partial[Any]) -> list[str]:
    """Returns the arguments that have no default and no value yet, but for the seed."""
    return [
        name
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.default is inspect.Parameter.empty and name != "seed"
    ]
