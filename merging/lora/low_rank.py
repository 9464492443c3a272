"""Candidates as one centre and low-rank differences to it: what a whole population can share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from merging.checkpoints.adapters import Adapter, Factors
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.lora.factors import FactorPlan, FactorWeights
from merging.methods.linear import Linear
from merging.methods.task_arithmetic import TaskArithmetic
from merging.paths.noise import LowRankNoise
from merging.paths.path import PathPlan, PathWeights
from merging.plan import MergePlan, Plan
from merging.seeding import stable_seed
from merging.weights import Weights


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

    def product(self) -> Tensor:
        """Returns the difference, ``(rows, columns)`` float32: in float64, rounded once."""
        b = self.b.double() if self.mix is None else self.b.double() * self.mix.double()
        return (b @ self.a.double()).float()


LowRankDeltas: TypeAlias = Mapping[str, LowRankProduct | Tensor]
"""Tensor name to its difference from the centre: factors, or the whole where it is a vector.
Tensors that are not named are the centre's."""


_Sides: TypeAlias = Callable[[int], tuple[Tensor, Tensor] | Tensor]


@dataclass(frozen=True, eq=False)
class CentredCandidate:
    """One candidate beside a centre.

    Args:
        centre: what the differences are added to, read tensor by tensor; empty: the base.
        key: equal for equal centres, so that candidates of one population can be told.
        deltas: differences to the centre.
    """

    centre: Weights
    key: Any
    deltas: LowRankDeltas


class Stacks:
    """A pool's LoRA factors with the experts' ranks side by side, each stacked once.

    ``sum_i w_i s_i B_i A_i`` is ``b diag(mix) a`` with b = (B_1, B_2, ...), a = (A_1; A_2; ...)
    and mix = (w_1 s_1, ..., w_2 s_2, ...): mixtures of one pool differ in `mix` alone.

    Args:
        pool: base and experts.
    """

    def __init__(self, pool: ExpertPool) -> None:
        self.pool = pool
        self._kept: dict[str, tuple[Tensor, Tensor, tuple[tuple[int, int, float], ...]]] = {}
        self._unit = _unit_pool(pool)
        self._noises: dict[tuple[LowRankNoise, str], _Sides] = {}

    def mixture(self, plan: MergePlan) -> dict[str, LowRankProduct | Tensor] | None:
        """Returns what a plan adds to the base; None: more than a mixture of factors.

        Raises:
            MergeError: as the plan's weights raise.
        """
        method = plan.method
        if not isinstance(method, (Linear, TaskArithmetic)):
            return None
        if isinstance(method, Linear) and not method.normalize:
            return None  # weighs the base too, by the sum of the weights
        coefficients = plan.weights(self._unit, dtype=torch.float32)
        group = plan.grouping.assign(self.pool.names)
        of_group: dict[str, Tensor] = {}
        deltas: dict[str, LowRankProduct | Tensor] = {}
        for name in self.pool.names:
            if not self._moved(name, plan.experts):
                continue
            if group[name] not in of_group:
                of_group[group[name]] = coefficients[name]
            delta = self._delta(name, of_group[group[name]])
            if delta is None:
                return None
            deltas[name] = delta
        return deltas

    def expert(self, expert: str) -> dict[str, LowRankProduct | Tensor] | None:
        """Returns what one expert adds to the base; None: it is no adapter, or brings a matrix."""
        deltas: dict[str, LowRankProduct | Tensor] = {}
        weights = torch.tensor([float(each == expert) for each in self.pool.expert_names])
        for name in self.pool.names:
            if self._moved(name, (expert,)):
                delta = self._delta(name, weights)
                if delta is None:
                    return None
                deltas[name] = delta
        return deltas

    def noise(self, noise: LowRankNoise, name: str, seed: int) -> tuple[Tensor, Tensor] | Tensor:
        """Returns the sides of a noise, as `LowRankNoise.factors`; its size is found once."""
        key = noise, name
        if key not in self._noises:
            self._noises[key] = noise.factors(name, self.pool)
        return self._noises[key](seed)

    def _moved(self, name: str, experts: tuple[str, ...]) -> bool:
        opened = (self.pool.experts[each] for each in experts)
        return any(not isinstance(each, Adapter) or name in each.touched for each in opened)

    def _delta(self, name: str, weights: Tensor) -> LowRankProduct | Tensor | None:
        """Returns the weighted sum of the experts' differences; None: it has no low rank."""
        if len(self.pool.base.shape(name)) < 2:
            rows = self.pool.deltas(name)
            return weights.to(rows.device) @ rows.reshape(len(rows), -1)
        if name not in self._kept:
            stacked = self._stack(name)
            if stacked is None:
                return None
            self._kept[name] = stacked
        a, b, parts = self._kept[name]
        numbers = weights.tolist()
        mix = [numbers[i] * scale for i, rank, scale in parts for _ in range(rank)]
        return LowRankProduct(a, b, torch.tensor(mix, dtype=torch.float32, device=a.device))

    def _stack(
        self, name: str
    ) -> tuple[Tensor, Tensor, tuple[tuple[int, int, float], ...]] | None:
        """Returns a, b and (expert, rank, scale) of every part; None: not all are factors."""
        parts, sides = [], []
        for i, expert in enumerate(self.pool.experts.values()):
            if not isinstance(expert, Adapter):
                return None
            copy, factors = expert.copy(name), expert.factors(name)
            # beside the factors of an embedding peft saves the base's embedding, as it was
            if copy is not None and not torch.equal(
                copy.float(), self.pool.base_tensor(name).float()
            ):
                return None
            if factors is not None:
                parts.append((i, len(factors.a), factors.scale))
                sides.append(as_stored(factors))
        if not sides:
            return None
        a = torch.cat([each.a for each in sides]).contiguous()
        b = torch.cat([each.b for each in sides], dim=1).contiguous()
        return a, b, tuple(parts)


def as_stored(factors: Factors) -> LowRankProduct:
    """Returns an adapter's factors in the layout of the weight, float32, without their scale."""
    a, b = factors.a.float(), factors.b.float()
    return LowRankProduct(b.T, a.T) if factors.transposed else LowRankProduct(a, b)


def low_rank_of(
    plan: Plan, stacks: Stacks, weights: Weights | None = None
) -> CentredCandidate | None:
    """Returns a plan as a centre and a low-rank difference; None: it has no such form.

    Known are mixtures of LoRA experts (`Linear` with shares, `TaskArithmetic`), plans over their
    factors A and B, and paths whose candidates are low-rank noise around the centre.

    Args:
        plan: of the candidate.
        stacks: of the pool that the plan is for; one for all candidates.
        weights: what the space decoded for the same genome: its held centre is used where there
            is one. None: taken from the plan.

    Raises:
        MergeError: as the plan's weights raise.
    """
    if isinstance(plan, MergePlan):
        deltas = stacks.mixture(plan)
        return None if deltas is None else CentredCandidate({}, None, deltas)
    if isinstance(plan, FactorPlan):
        given = weights if isinstance(weights, FactorWeights) else None
        return _from_factors(plan.weights(stacks.pool) if given is None else given)
    if isinstance(plan, PathPlan):
        given_path = weights if isinstance(weights, PathWeights) else None
        return _from_path(plan, given_path, stacks)
    return None


def _from_factors(weights: FactorWeights) -> CentredCandidate | None:
    deltas: dict[str, LowRankProduct | Tensor] = {}
    for name, found in weights.differences():
        if isinstance(found, Factors):
            stored = as_stored(found)
            deltas[name] = LowRankProduct(stored.a, stored.b * found.scale)
        elif found.dim() < 2:
            deltas[name] = found
        else:
            return None
    return CentredCandidate({}, None, deltas)


def _from_path(
    plan: PathPlan, weights: PathWeights | None, stacks: Stacks
) -> CentredCandidate | None:
    if not isinstance(plan.noise, LowRankNoise) or plan.path.own is None:
        return None
    number, coefficient = plan.path.own
    seed = stable_seed("noise", plan.seed, number)
    deltas: dict[str, LowRankProduct | Tensor] = {}
    for name in stacks.pool.names:
        drawn = stacks.noise(plan.noise, name, seed)
        if isinstance(drawn, Tensor):
            deltas[name] = drawn.mul_(coefficient)
        elif len(stacks.pool.base.shape(name)) > 2:
            return None
        else:
            left, right = drawn
            deltas[name] = LowRankProduct(right, left.mul_(coefficient))
    centre = plan.weights(stacks.pool) if weights is None else weights
    return CentredCandidate(centre.centre, (plan.seed, plan.path.centre), deltas)


def _unit_pool(pool: ExpertPool) -> ExpertPool:
    """Returns a pool in which every tensor of expert i is the i-th unit vector, the base's zero.

    A merge that is linear in the deltas gives its coefficients on it, by its own code.
    """
    base = _UnitBase(pool)
    experts = {
        name: _UnitExpert(expert.source, expert.sha256, i)
        for i, (name, expert) in enumerate(pool.experts.items())
    }
    # The pool reads no more of its base than weights, shapes and dtypes.
    return ExpertPool(cast(Checkpoint, base), experts, pool.names, (), torch.device("cpu"), base)


class _UnitBase(Mapping[str, Tensor]):
    """Zeros, ``(experts,)`` float32 for every name of the pool."""

    def __init__(self, pool: ExpertPool) -> None:
        self._names, self._count = dict.fromkeys(pool.names), len(pool.experts)

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape."""
        return torch.Size([self._count])

    def dtype(self, name: str) -> torch.dtype:
        """Returns float32."""
        return torch.float32

    def __getitem__(self, name: str) -> Tensor:
        return torch.zeros(self._count)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class _UnitExpert:
    """A unit vector in place of every tensor of an expert."""

    source: str
    sha256: str
    place: int

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes the unit vector into `out`."""
        out.zero_()[self.place] = 1

    def tensor(self, name: str, base: Tensor) -> Tensor:
        """Returns the unit vector."""
        whole = torch.zeros_like(base)
        whole[self.place] = 1
        return whole

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Yields nothing: nothing is stored."""
        return iter(())

    def privacy(self) -> None:
        """Returns None: nothing is learnt."""

    def to(self, device: torch.device) -> _UnitExpert:
        """Returns itself."""
        return self
