"""The companion search: the best point inside the experts' hull in as many evaluations.

What a search beyond the hull is worth is seen only beside what an equal effort finds within it.
"""

from typing import Any

from omegaconf import DictConfig

from experiments.runs.errors import UserError
from experiments.setup.pairing import check_pair
from experiments.setup.problem import Problem, open_space, open_strategy
from merging.checkpoints.experts import ExpertPool
from merging.spaces.convex import ConvexSpace
from merging.spaces.space import SearchSpace


def has_companion(config: DictConfig, space: SearchSpace[Any]) -> bool:
    """Returns whether a search in `space` has one: not turned off, and `space` leaves the hull."""
    return config.in_hull is not None and not isinstance(space, ConvexSpace)


def open_companion(config: DictConfig, pool: ExpertPool) -> Problem:
    """Returns the companion's space over `pool` and its strategy, freshly seeded."""
    return Problem.open(config.in_hull, pool, None, config.seed)


def worker_config(config: DictConfig) -> DictConfig:
    """Returns the configuration by which workers score the companion's candidates."""
    changed = config.copy()
    changed.space, changed.common_items = config.in_hull.space, None
    return changed


def check_in_hull(config: DictConfig, stand_in: ExpertPool) -> None:
    """Builds the companion's space and strategy on a stand-in for the experts.

    Raises:
        UserError: its options are none, its space may leave the hull, or its strategy cannot
            search it; names the option.
    """
    entries = config.in_hull
    if entries is None:
        return
    if not isinstance(entries, DictConfig) or not {"space", "strategy"} <= set(entries):
        raise UserError(
            f"in_hull={entries}: expected a space and a strategy, as in the default, or "
            "in_hull=null for no companion search"
        )
    check_pair(entries)
    space = open_space(entries.space, stand_in, None)
    if not isinstance(space, ConvexSpace):
        raise UserError(
            f"in_hull.space: {type(space).__name__} may leave the hull: "
            "choose space@in_hull.space=convex"
        )
    open_strategy(entries.strategy, space.domain, config.seed)
