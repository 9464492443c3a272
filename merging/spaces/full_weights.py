"""Full-weight space: every parameter moves by noise of its own, beyond the experts' span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from merging.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.path import BASE, Path, PathPlan, PathWeights, Walk
from merging.perturbation import Noise
from merging.plan import MergePlan, Plan
from merging.spaces.axes import Axis
from merging.weights import Weights


class FullWeightSpace:
    """Genome: a `Path`, in a few kilobytes; a model's size is never multiplied by a population.

    All tensors that the pool merges move: with whole checkpoints the whole model, with LoRA
    experts the tensors that an adapter touches, in delta space (exact products B @ A). One
    centre is held in float32; candidates around it cost one draw per tensor, and the centre of
    the next generation one draw per tensor and candidate. Paths that do not go on from the held
    centre are walked anew from their start.

    Args:
        pool: base and experts.
        starts: name to the plan of a point that paths may start from; ``base`` is always known.
        noise: kind of noise.
        seed: of the run; with a noise's number and a tensor's name it decides that noise.
        dtype: of decoded weights; None: the base's.

    Raises:
        MergeError: a start is called ``base``, or its plan does not fit the pool.

    Attributes:
        axes: none: a genome is no vector.
    """

    axes: tuple[Axis, ...] = ()

    def __init__(
        self,
        pool: ExpertPool,
        starts: Mapping[str, Plan],
        noise: Noise,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if BASE in starts:
            raise MergeError(f"a start cannot be called {BASE!r}: that is the base model itself")
        self.pool, self.noise, self.seed, self.dtype = pool, noise, seed, dtype
        self.starts = dict(starts)
        weights = {name: plan.weights(pool, dtype=torch.float32) for name, plan in starts.items()}
        self._walk = Walk(pool, weights, noise, seed, keep=True)

    def plan(self, genome: Path) -> PathPlan:
        """Returns the plan of the point that `genome` leads to.

        Raises:
            ValueError: the path starts from a point that the space does not know.
        """
        if genome.start != BASE and genome.start not in self.starts:
            raise ValueError(
                f"the path starts from {genome.start!r}: the space knows "
                f"{', '.join([BASE, *self.starts])}"
            )
        start = None if genome.start == BASE else self.starts[genome.start]
        return PathPlan(start, self.noise, self.seed, genome)

    def decode(self, genome: Path) -> Weights:
        """Returns the weights of `genome`, computed when read; same genome, same bits.

        They are those of `plan`, bit for bit, from the held centre where it lies on the path.
        """
        self.plan(genome)
        return PathWeights(self._walk, genome, self.dtype)

    def describe(self, genome: Path) -> dict[str, Any]:
        """Returns the plan as JSON."""
        return self.plan(genome).describe()

    def canonical(self, genome: Path) -> Path:
        """Returns `genome` itself."""
        return genome


def weighted_start(pool: ExpertPool, weights: Sequence[float], *, scale: float = 1.0) -> MergePlan:
    """Returns the paper's initial point: ``base + scale sum_i w_i delta_i``.

    Args:
        pool: base and experts.
        weights: one per expert, as `initial_weights` gives them.
        scale: the paper's alpha / M is far smaller than the released code's 1.0.

    Source: MERGEvolve, arXiv 2606.28373, step 1.
    """
    if len(weights) != len(pool.expert_names):
        raise MergeError(
            f"{len(weights)} weights for {len(pool.expert_names)} experts: give one per expert"
        )
    each = dict(zip(pool.expert_names, map(float, weights), strict=True))
    knobs: dict[str, Mapping[str, float] | float] = {"weight": each, "scale": float(scale)}
    return MergePlan(TaskArithmetic(), Whole(), pool.expert_names, {"model": knobs})
