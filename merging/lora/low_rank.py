"""Candidates as one centre and low-rank deltas from it, which a population can share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from merging.checkpoints.adapters import Adapter, Factors
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.expert import Expert
from merging.checkpoints.experts import ExpertPool
from merging.lora.factors import FactorPlan, FactorWeights, brings_other_copy
from merging.methods.linear import Linear
from merging.methods.task_arithmetic import TaskArithmetic
from merging.paths.noise import LowRankNoise
from merging.paths.path import PathPlan, PathWeights
from merging.plan import MergePlan, Plan
from merging.rules.threads import one_thread
from merging.seeding import stable_seed
from merging.weights import LazyWeights, Weights


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """``b @ diag(mix) @ a``, what is added to a matrix in the layout in which it is stored.

    Candidates that hold the very same `a` and `b`, and differ in `mix` alone, need them once.

    Args:
        a: ``(rank, columns)`` float32.
        b: ``(rows, rank)`` float32.
        mix: ``(rank,)`` float32; None: ones.
    """

    a: Tensor
    b: Tensor
    mix: Tensor | None = None

    @one_thread()
    def product(self) -> Tensor:
        """Returns ``b diag(mix) a``, ``(rows, columns)`` float32: in float64, rounded once."""
        b = self.b.double() if self.mix is None else self.b.double() * self.mix.double()
        return (b @ self.a.double()).float()


LowRankDeltas: TypeAlias = Mapping[str, LowRankProduct | Tensor]
"""Tensor name to its difference from the centre: factors, or the full tensor where it is a vector.
Tensors that are not named are the centre's."""

_Deltas: TypeAlias = dict[str, LowRankProduct | Tensor]
_NoiseFactors: TypeAlias = Callable[[int], tuple[Tensor, Tensor] | Tensor]


@dataclass(frozen=True, eq=False)
class CentredCandidate:
    """One candidate beside a centre.

    Args:
        centre: read tensor by tensor; empty: the base.
        key: equal for equal centres, so that candidates of one population can be told.
    """

    centre: Weights
    key: Any
    deltas: LowRankDeltas


class _Stack(NamedTuple):
    """The experts' factors of one tensor side by side; (expert, rank, scale) of every part."""

    a: Tensor
    b: Tensor
    parts: tuple[tuple[int, int, float], ...]


class StackedFactors:
    """A pool's LoRA factors with the experts' ranks side by side, each stacked once.

    ``sum_i w_i s_i B_i A_i`` is ``b diag(mix) a`` with b = (B_1, B_2, ...), a = (A_1; A_2; ...)
    and mix = (w_1 s_1, ..., w_2 s_2, ...): mixtures of one pool differ in `mix` alone.
    """

    def __init__(self, pool: ExpertPool) -> None:
        self.pool = pool
        self._stacks: dict[str, _Stack] = {}
        self._unit_pool = _unit_pool(pool)
        self._noises: dict[tuple[LowRankNoise, str], _NoiseFactors] = {}

    def mixture(self, plan: MergePlan) -> _Deltas | None:
        """Returns a plan's deltas from the base; None: it is more than a mixture of factors."""
        method = plan.method
        if not isinstance(method, (Linear, TaskArithmetic)):
            return None
        if isinstance(method, Linear) and not method.normalize:
            return None  # weighs the base too, by the sum of the weights
        coefficients = plan.weights(self._unit_pool, dtype=torch.float32)
        group = plan.grouping.assign(self.pool.names)
        of_group: dict[str, Tensor] = {}
        deltas: _Deltas = {}
        for name in self.pool.names:
            if not self._touched(name, plan.experts):
                continue
            if group[name] not in of_group:
                of_group[group[name]] = coefficients[name]
            delta = self._delta(name, of_group[group[name]])
            if delta is None:
                return None
            deltas[name] = delta
        return deltas

    def noise(self, noise: LowRankNoise, name: str, seed: int) -> tuple[Tensor, Tensor] | Tensor:
        """Returns the factors of a noise, as `LowRankNoise.factors`; its size is found once."""
        key = noise, name
        if key not in self._noises:
            self._noises[key] = noise.factors(name, self.pool)
        return self._noises[key](seed)

    def _touched(self, name: str, names: tuple[str, ...]) -> bool:
        experts = (self.pool.experts[expert] for expert in names)
        return any(not isinstance(expert, Adapter) or name in expert.touched for expert in experts)

    def _delta(self, name: str, weights: Tensor) -> LowRankProduct | Tensor | None:
        """Returns the weighted sum of the experts' deltas; None: it has no low rank."""
        if len(self.pool.base.shape(name)) < 2:
            deltas = self.pool.deltas(name)
            return weights.to(deltas.device) @ deltas.reshape(len(deltas), -1)  # sum_i w_i d_i
        if name not in self._stacks:
            stack = self._stack(name)
            if stack is None:
                return None
            self._stacks[name] = stack
        a, b, parts = self._stacks[name]
        numbers = weights.tolist()
        mix = [numbers[i] * scale for i, rank, scale in parts for _ in range(rank)]  # w_i s_i
        return LowRankProduct(a, b, torch.tensor(mix, dtype=torch.float32, device=a.device))

    def _stack(self, name: str) -> _Stack | None:
        """Returns the stacked factors; None: an expert brings something else."""
        parts, products = [], []
        for i, expert in enumerate(self.pool.experts.values()):
            if not isinstance(expert, Adapter) or brings_other_copy(expert, name, self.pool):
                return None
            factors = expert.factors(name)
            if factors is not None:
                parts.append((i, len(factors.a), factors.scale))
                products.append(as_stored(factors))
        if not products:
            return None
        a = torch.cat([product.a for product in products]).contiguous()
        b = torch.cat([product.b for product in products], dim=1).contiguous()
        return _Stack(a, b, tuple(parts))


def as_stored(factors: Factors) -> LowRankProduct:
    """Returns an adapter's factors in the layout of the weight, float32, without their scale."""
    a, b = factors.a.float(), factors.b.float()
    return LowRankProduct(b.T, a.T) if factors.transposed else LowRankProduct(a, b)


@one_thread()
def low_rank_of(
    plan: Plan, stacks: StackedFactors, weights: Weights | None = None
) -> CentredCandidate | None:
    """Returns a plan as a centre and low-rank deltas; None: it has no such form.

    Known are mixtures of LoRA experts (`Linear` with shares, `TaskArithmetic`), plans over their
    factors A and B, and paths whose candidates are low-rank noise around the centre.

    Args:
        stacks: of the pool that the plan is for; one for all candidates.
        weights: what the space decoded for the same genome: its held centre is used where there
            is one. None: taken from the plan, and with its errors.
    """
    if isinstance(plan, MergePlan):
        deltas = stacks.mixture(plan)
        return None if deltas is None else CentredCandidate({}, None, deltas)
    if isinstance(plan, FactorPlan):
        factors = weights if isinstance(weights, FactorWeights) else plan.weights(stacks.pool)
        return _from_factors(factors)
    if isinstance(plan, PathPlan):
        return _from_path(plan, weights if isinstance(weights, PathWeights) else None, stacks)
    return None


def _from_factors(weights: FactorWeights) -> CentredCandidate | None:
    deltas: _Deltas = {}
    for name, delta in weights.deltas():
        if isinstance(delta, Factors):
            stored = as_stored(delta)
            deltas[name] = LowRankProduct(stored.a, stored.b * delta.scale)
        elif delta.dim() < 2:
            deltas[name] = delta
        else:
            return None
    return CentredCandidate({}, None, deltas)


def _from_path(
    plan: PathPlan, weights: PathWeights | None, stacks: StackedFactors
) -> CentredCandidate | None:
    if not isinstance(plan.noise, LowRankNoise) or plan.path.own is None:
        return None
    number, coefficient = plan.path.own
    seed = stable_seed("noise", plan.seed, number)
    deltas: _Deltas = {}
    for name in stacks.pool.names:
        noise = stacks.noise(plan.noise, name, seed)
        if isinstance(noise, Tensor):
            deltas[name] = noise.mul_(coefficient)
        elif len(stacks.pool.base.shape(name)) > 2:
            return None
        else:
            left, right = noise
            deltas[name] = LowRankProduct(right, left.mul_(coefficient))
    centre = plan.weights(stacks.pool) if weights is None else weights
    return CentredCandidate(centre.centre, (plan.seed, plan.path.centre), deltas)


def _unit_pool(pool: ExpertPool) -> ExpertPool:
    """Returns a pool in which every tensor of expert i is the i-th unit vector, the base's zero.

    A merge that is linear in the deltas gives its coefficients on it, by its own code.
    """
    base = _UnitBase(pool.names, len(pool.experts))
    # A merge reads no more of a base than weights, shapes and dtypes, of an expert than its fill.
    experts = {
        name: cast(Expert, _UnitExpert(expert.source, expert.sha256, i))
        for i, (name, expert) in enumerate(pool.experts.items())
    }
    return ExpertPool(cast(Checkpoint, base), experts, pool.names, (), torch.device("cpu"), base)


class _UnitBase(LazyWeights):
    """Zeros, ``(experts,)`` float32 for every name of the pool."""

    def __init__(self, names: tuple[str, ...], experts: int) -> None:
        super().__init__(names)
        self._experts = experts

    def shape(self, name: str) -> torch.Size:
        return torch.Size([self._experts])

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def _tensor(self, name: str) -> Tensor:
        return torch.zeros(self._experts)


@dataclass(frozen=True, eq=False)
class _UnitExpert:
    """A unit vector in place of every tensor of an expert."""

    source: str
    sha256: str
    index: int

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes the unit vector into `out`."""
        out.zero_()[self.index] = 1
