"""The companion search: the best point inside the experts' hull in as many evaluations.

What a search beyond the hull is worth is seen only beside what an equal effort finds within it.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from experiments.runs.errors import UserError
from experiments.setup import assemble
from experiments.setup.pairing import build_space, build_strategy, check_pair
from merging.checkpoints.experts import ExpertPool
from merging.spaces.convex import ConvexSpace
from merging.spaces.space import SearchSpace
from search.strategy import Strategy


def companion(
    config: DictConfig, pool: ExpertPool, own: SearchSpace[Any]
) -> tuple[SearchSpace[Any], Strategy[Any]] | None:
    """Returns the companion's space over `pool` and its strategy, freshly seeded.

    None: it is turned off, or the run's own space does not leave the hull.

    Args:
        config: of the run.
        pool: base and experts.
        own: space of the run itself.
    """
    if config.in_hull is None or isinstance(own, ConvexSpace):
        return None
    space = _space(config, pool)
    return space, build_strategy(_partial(config, "strategy"), space.domain, int(config.seed))


def check_in_hull(config: DictConfig, stand_in: ExpertPool) -> None:
    """Builds the companion's space and strategy on a stand-in for the experts.

    Raises:
        UserError: its options are none, its space may leave the hull, or its strategy cannot
            search it; names the option.
    """
    parts = config.in_hull
    if parts is None:
        return
    if not isinstance(parts, DictConfig) or not {"space", "strategy"} <= set(parts):
        raise UserError(
            f"in_hull={parts}: expected a space and a strategy, as in the default, or "
            "in_hull=null for no companion search"
        )
    check_pair(_partial(config, "space"), _partial(config, "strategy"))
    space = _space(config, stand_in)
    if not isinstance(space, ConvexSpace):
        raise UserError(
            f"in_hull.space: {type(space).__name__} may leave the hull: "
            "choose space@in_hull.space=convex"
        )
    build_strategy(_partial(config, "strategy"), space.domain, int(config.seed))


def _space(config: DictConfig, pool: ExpertPool) -> SearchSpace[Any]:
    space: SearchSpace[Any] = build_space(
        _partial(config, "space"), pool, {"dtype": torch.float32}
    )
    return space


def _partial(config: DictConfig, part: str) -> Any:
    return assemble.open_partial(config.in_hull[part])
