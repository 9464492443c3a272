"""A problem: where a search looks, by which strategy, and from which point on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import DictConfig

from experiments.setup.assemble import open_part
from merging.checkpoints.experts import ExpertPool
from merging.plan import Plan
from merging.spaces.displaced import DisplacedSpace
from merging.spaces.space import SearchSpace
from merging.spaces.vectors import VectorGenomes, VectorSpace
from search.strategy import Strategy


@dataclass(frozen=True)
class Problem:
    """What is searched; cheap to make, once it is known where to start.

    Args:
        space: decodes to float32.
        strategy: freshly seeded.
        start: None: the space's own.
    """

    space: SearchSpace[Any]
    strategy: Strategy[Any]
    start: Plan | None

    @property
    def first(self) -> Plan:
        """The plan of the first genome."""
        return self.space.plan(self.space.first())

    @classmethod
    def open(cls, entries: DictConfig, pool: ExpertPool, start: Plan | None, seed: int) -> Problem:
        """Returns the problem over `pool` that `entries`, a ``space`` and a ``strategy``, name."""
        space = open_space(entries.space, pool, start)
        return cls(space, open_strategy(entries.strategy, space.domain, seed), start)


def open_space(entry: DictConfig, pool: ExpertPool, start: Plan | None) -> SearchSpace[Any]:
    """Returns the space over `pool` that begins at `start`; None: at its own first genome."""
    build = open_part(entry)
    taken = inspect.signature(build).parameters
    options = {"initial": start, "dtype": torch.float32}
    space = build(pool, **{name: value for name, value in options.items() if name in taken})
    if start is not None and isinstance(space, VectorGenomes) and "initial" not in taken:
        return DisplacedSpace(cast(VectorSpace, space), start, dtype=torch.float32)
    return cast(SearchSpace[Any], space)


def open_strategy(entry: DictConfig, domain: Mapping[str, Any], seed: int) -> Strategy[Any]:
    """Returns the strategy, freshly seeded, with what it takes of a space's domain."""
    build: Callable[..., Strategy[Any]] = open_part(entry)
    taken = inspect.signature(build).parameters
    return build(**{name: value for name, value in domain.items() if name in taken}, seed=seed)
