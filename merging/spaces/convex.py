"""Convex space: one share per expert for the whole model, never outside the experts' hull."""

from collections.abc import Mapping

import numpy as np
import torch

from merging.arrays import Vector
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan
from merging.spaces.axes import Axis, Real, check
from merging.spaces.vectors import VectorGenomes

_GRID = 2.0**24


class ConvexSpace(VectorGenomes):
    """Genome: a number per expert; its square, divided by the sum of squares, is the share.

    ``weights = base + sum_i s_i delta_i`` with ``s_i = g_i^2 / sum_j g_j^2``: every genome is a
    convex combination of the experts and every convex combination has a genome, also those with
    shares of 0 (a softmax never gets there), so that an unbounded optimizer needs no bounds. The
    search starts at equal shares; a genome of zeros means equal shares as well. With `with_base`
    the base has a share too: the hull of experts and base.

    Shares are whole multiples of 2^-24 that sum to exactly 1, which float32 holds exactly: no
    rounding leads out of the hull but that of the weights themselves.
    """

    def __init__(
        self, pool: ExpertPool, *, with_base: bool = False, dtype: torch.dtype | None = None
    ) -> None:
        self.pool, self.with_base, self.dtype = pool, with_base, dtype
        names = [f"share/{expert}" for expert in pool.expert_names]
        self.axes: tuple[Axis, ...] = tuple(
            Real(name, start=1.0, scale=0.5) for name in [*names, *(["base"] if with_base else [])]
        )

    @property
    def corners(self) -> Mapping[str, Vector]:
        """The genome of every expert alone."""
        return dict(zip(self.pool.expert_names, np.eye(len(self.axes)), strict=False))

    def shares(self, genome: Vector) -> Vector:
        """Returns the shares of the experts (and of the base, last); errors as `check`."""
        check(self.axes, genome)
        largest = float(np.abs(genome).max())
        squares = (genome / largest) ** 2 if largest > 0 else np.ones(len(genome))
        shares: Vector = np.round(squares / squares.sum() * _GRID) / _GRID  # g_i^2 / sum_j g_j^2
        shares[int(np.argmax(shares))] += 1.0 - shares.sum()
        return shares

    def plan(self, genome: Vector) -> MergePlan:
        """Returns the merge that `genome` stands for; errors as in `shares`."""
        names = self.pool.expert_names
        shares = dict(zip(names, self.shares(genome).tolist(), strict=False))
        knobs: dict[str, Mapping[str, float] | float] = {"weight": shares, "scale": 1.0}
        return MergePlan(TaskArithmetic(), Whole(), names, {"model": knobs})

    def canonical(self, genome: Vector) -> Vector:
        """Returns the roots of the shares: one genome for all signs and lengths."""
        return np.sqrt(self.shares(genome))
