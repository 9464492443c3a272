"""Full-weight space: every parameter moves by noise of its own, beyond the experts' span."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.paths.noise import Noise
from merging.paths.path import BASE, START, Path, PathPlan, PathWeights, Walk
from merging.plan import MergePlan, Plan
from merging.weights import Weights


class PathGenomes(ABC):
    """First genome, JSON and domain of a space whose genomes are paths.

    Attributes:
        initial: plan of the point that paths start from; None: the base.
    """

    gives: ClassVar[tuple[str, ...]] = ("starts",)
    initial: Plan | None

    @property
    def domain(self) -> Mapping[str, Any]:
        """The one point that paths start from."""
        return {"starts": (BASE if self.initial is None else START,)}

    def first(self) -> Path:
        """Returns the start itself."""
        return Path(*self.domain["starts"])

    @abstractmethod
    def plan(self, genome: Path) -> Plan:
        """Returns the plan of a path; raises ValueError for a start that is none here."""

    def canonical(self, genome: Path) -> Path:
        """Returns `genome` itself."""
        return genome

    def to_json(self, genome: Path) -> dict[str, Any]:
        """Returns the path."""
        return genome.to_json()

    def from_json(self, value: Any) -> Path:
        """Returns the path; raises ValueError where it is none, or starts from elsewhere."""
        if not isinstance(value, Mapping):
            raise ValueError(f"a genome of this space is a path, got {value!r}")
        genome = Path.from_json(value)
        self.plan(genome)
        return genome


class FullWeightSpace(PathGenomes):
    """Genome: a `Path`, in a few kilobytes; a model's size is never multiplied by a population.

    All tensors that the pool merges move: with whole checkpoints the whole model, with LoRA
    experts the tensors that an adapter touches, in delta space (exact products B @ A). One
    centre is held in float32; candidates around it cost one draw per tensor, and the centre of
    the next generation one draw per tensor and candidate. Paths that do not go on from the held
    centre are walked anew from their start.

    Args:
        initial: plan of the point that paths start from; None: the base.
        seed: of the run; with a noise's number and a tensor's name it decides that noise.
    """

    def __init__(
        self,
        pool: ExpertPool,
        noise: Noise,
        *,
        initial: Plan | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.pool, self.noise, self.initial = pool, noise, initial
        self.seed, self.dtype = seed, dtype
        self._walk: Walk | None = None

    @property
    def dimensions(self) -> int:
        """Number of parameters that move."""
        return sum(self.pool.base.shape(name).numel() for name in self.pool.names)

    @property
    def numbers(self) -> int:
        """Most independent numbers that one noise has."""
        experts = len(self.pool.expert_names)
        shapes = (self.pool.base.shape(name) for name in self.pool.names)
        return sum(self.noise.numbers(shape, experts) for shape in shapes)

    def plan(self, genome: Path) -> PathPlan:
        """Returns the plan of the point that `genome` leads to; errors as `PathGenomes.plan`."""
        known = [BASE] if self.initial is None else [BASE, START]
        if genome.start not in known:
            raise ValueError(
                f"the path starts from {genome.start!r}: the space knows {', '.join(known)}"
            )
        start = None if genome.start == BASE else self.initial
        return PathPlan(start, self.noise, self.seed, genome)

    def decode(self, genome: Path) -> Weights:
        """Returns the weights of `genome`, computed when read; same genome, same bits.

        They are those of `plan`, bit for bit, from the held centre where it lies on the path.
        """
        self.plan(genome)
        if self._walk is None:
            self._walk = Walk(self.pool, self.initial, self.noise, self.seed, keep=True)
        return PathWeights(self._walk, genome, self.dtype)


def weighted_start(pool: ExpertPool, weights: Sequence[float], *, scale: float = 1.0) -> MergePlan:
    """Returns the paper's initial point: ``base + scale sum_i w_i delta_i``, a weight per expert.

    The paper's scale, alpha / M, is far smaller than the released code's 1.0.

    Source: MERGEvolve, arXiv 2606.28373, step 1.
    """
    if len(weights) != len(pool.expert_names):
        raise MergeError(
            f"{len(weights)} weights for {len(pool.expert_names)} experts: give one per expert"
        )
    by_expert = dict(zip(pool.expert_names, map(float, weights), strict=True))
    knobs: dict[str, Mapping[str, float] | float] = {"weight": by_expert, "scale": float(scale)}
    return MergePlan(TaskArithmetic(), Whole(), pool.expert_names, {"model": knobs})
