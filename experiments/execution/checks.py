"""What cannot be scored by workers, or without generations: refused before anything is opened."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from experiments import assemble
from experiments.racing_checks import open_racing
from search.steady import check_steady
from search.strategy import Strategy


def check_execution(config: DictConfig, strategy: Strategy[Any]) -> None:
    """Builds the execution and compares it with what the search asks of it.

    Args:
        config: of the run.
        strategy: freshly built.

    Raises:
        ValueError: names the options that cannot go together, and the remedy.
    """
    execution = assemble.open_execution(config)
    racing = open_racing(config) is not None
    if racing and execution.elsewhere:
        raise ValueError(
            "racing decides after every few items who is asked on, which workers elsewhere cannot "
            "wait for: choose execution=local or racing=none"
        )
    if not config.asynchronous:
        return
    check_steady(strategy, many=execution.elsewhere)
    if racing:
        raise ValueError(
            "asynchronous=true: there is no generation to be raced: choose racing=none, or "
            "asynchronous=false"
        )
    if config.common_items is not None:
        raise ValueError(
            f"asynchronous=true: there is no generation to share common_items="
            f"{config.common_items}: leave common_items out, or choose asynchronous=false"
        )
