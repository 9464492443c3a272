"""Which strategies can search which spaces: refused by name, before anything is opened."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.runs.errors import UserError
from search.strategy import Strategy

_KINDS = {
    "axes": ("numbers along axes", "space=weights, coefficients, convex, mixed or layer_stack"),
    "starts": ("paths through all weights", "space=full_weights or factors"),
    "founders": ("lineage trees", "space=lineage"),
}
READ_BY = {  # part: its default, and the spaces that read it
    "method": ("merging.methods.task_arithmetic.TaskArithmetic", "weights or coefficients"),
    "grouping": ("merging.grouping.Whole", "weights, coefficients or mixed"),
    "noise": ("merging.paths.noise.GaussianNoise", "full_weights or factors"),
}
_STRATEGIES = {
    "axes": "cma, de, pso, model_swarms, ngopt, oneplusone, random or grid",
    "starts": "mergevolve or dp_zo",
    "founders": "crossover, m2n2, nsga2, map_elites or cycle_qd",
}


def check_pair(build_space: partial[Any], build_strategy: partial[Any]) -> None:
    """Compares what a strategy has to know with what a space gives; builds neither.

    Raises:
        UserError: they cannot go together; names both and what goes with each.
    """
    space_class: Any = build_space.func
    gives: tuple[str, ...] = space_class.gives
    lacking = [name for name in _required(build_strategy) if name not in gives]
    if not lacking:
        return
    strategy, space = build_strategy.func.__name__, space_class.__name__
    searched, spaces = _KINDS.get(lacking[0], (lacking[0], f"a space that gives {lacking[0]}"))
    kind = next((each for each in gives if each in _STRATEGIES), None)
    others = f", or for {space} a strategy such as {_STRATEGIES[kind]}" if kind else ""
    raise UserError(
        f"strategy {strategy} searches {searched}, which {space} has none of: "
        f"choose {spaces}{others}"
    )


def check_used(config: DictConfig) -> None:
    """Refuses a method, grouping or noise that the space does not read.

    Raises:
        UserError: one was chosen; names it, the space and what reads it.
    """
    read = json.dumps(OmegaConf.to_container(config.space, resolve=False))
    for part, (default, spaces) in READ_BY.items():
        chosen = str(config[part]["_target_"])
        if chosen != default and f"${{{part}}}" not in read:
            space = str(config.space["_target_"]).rpartition(".")[2]
            raise UserError(
                f"{part} {chosen.rpartition('.')[2]} has no effect in {space}: leave {part}= out, "
                f"or choose space={spaces}"
            )


def build_strategy(
    build: Callable[..., Any], domain: Mapping[str, Any], seed: int
) -> Strategy[Any]:
    """Returns the strategy with what it takes of a space's domain.

    Args:
        build: the configured class, still to be completed.
        domain: of the space that it will search.
        seed: of the run.
    """
    taken = inspect.signature(build).parameters
    known = {name: value for name, value in domain.items() if name in taken}
    strategy: Strategy[Any] = build(**known, seed=seed)
    return strategy


def build_space(build: Callable[..., Any], pool: Any, options: Mapping[str, Any]) -> Any:
    """Returns the space with those of the run's `options` that it takes."""
    taken = inspect.signature(build).parameters
    return build(pool, **{name: value for name, value in options.items() if name in taken})


def _required(build: partial[Any]) -> list[str]:
    """Returns the arguments that have no default and no value yet, but for the seed."""
    return [
        name
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.default is inspect.Parameter.empty and name != "seed"
    ]
