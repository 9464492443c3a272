"""What the command line overrides, for experiments that are more than one search."""

import shlex

from hydra.core.hydra_config import HydraConfig

_NOT_SHOWN = ("runs=", "out=", "cache=")  # they do not change the results


def overrides_given() -> list[str]:
    """Returns the overrides as they were given; none outside a Hydra application."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def shown_command() -> str:
    """Returns the command without what does not change the results."""
    shown = [override for override in overrides_given() if not override.startswith(_NOT_SHOWN)]
    return shlex.join(["evomerge", "search", *shown])


def only_experiment_named(*free: str) -> bool:
    """Says whether the command names an experiment and changes nothing of its results."""
    free = ("experiment=", "+experiment=", *_NOT_SHOWN, *free)
    return all(override.startswith(free) for override in overrides_given())
