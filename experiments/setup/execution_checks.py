"""What cannot be searched without generations: refused before anything is opened."""

from typing import Any

from omegaconf import DictConfig

from experiments.runs.choices import choices
from experiments.setup.execution import Execution
from search.loop.steady_state import check_steady
from search.strategy import Strategy


def check_execution(config: DictConfig, execution: Execution, strategy: Strategy[Any]) -> None:
    """Compares where candidates are scored with what the search asks of it."""
    if not config.asynchronous:
        return
    try:
        check_steady(strategy, many=execution.elsewhere)
    except ValueError as error:
        others = choices("strategy", lambda found: hasattr(found, "ask_one"))
        raise ValueError(
            f"asynchronous=true: {error}: choose strategy={others}, or asynchronous=false"
            + (", or execution=local" if execution.elsewhere else "")
        ) from error
    if config.common_items is not None:
        raise ValueError(
            f"asynchronous=true: there is no generation to share common_items="
            f"{config.common_items}: leave common_items out, or choose asynchronous=false"
        )
