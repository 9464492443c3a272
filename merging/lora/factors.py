"""LoRA experts as their factors A and B: what the released MERGEvolve averages and perturbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from merging.checkpoints.adapters import Adapter, Factors
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.expert import Expert
from merging.checkpoints.experts import ExpertPool
from merging.method import MergeError
from merging.plan import Plan
from merging.weights import LazyWeights, Weights

_SIDES = (".lora_A", ".lora_B")
_REMEDY = "choose FullWeightSpace, which works on the products B @ A"


@dataclass(frozen=True)
class _Layer:
    """How the factors of one tensor become its delta.

    Attributes:
        scale: of the product; 1 where the experts' scales differ: each B then carries its own.
        transposed: whether the layer stores its weight as (in, out).
    """

    shapes: tuple[torch.Size, torch.Size]
    scale: float
    transposed: bool

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns ``scale B A``, ``(*shape of the weight)`` float32: in float64, rounded once."""
        return Factors(a, b, self.scale, self.transposed).product().float()


def factor_pool(pool: ExpertPool) -> ExpertPool:
    """Returns a pool whose tensors are the adapters' factors, on the same device.

    Every tensor that adapters change by ``scale * B @ A`` becomes two, NAME.lora_A ``(rank, in)``
    and NAME.lora_B ``(out, rank)``, zero in the base; a tensor that adapters bring in full
    (``modules_to_save``) stays as it is. Merges, noise and paths work on it as on any pool.

    Raises:
        MergeError: an expert is no adapter, or the experts' factors of a tensor cannot be
            averaged: unequal ranks, none in one of them, or a full tensor in another.
    """
    layers = _layers(pool)
    base = _FactorBase(pool, layers)
    # A merge reads no more of a base than weights, shapes and dtypes, of an expert than its fill.
    experts = {
        name: cast(Expert, _FactorExpert(expert.source, expert.sha256, expert, layers))
        for name, expert in pool.experts.items()
        if isinstance(expert, Adapter)
    }
    return ExpertPool(cast(Checkpoint, base), experts, tuple(base), (), pool.device, base)


@dataclass(frozen=True)
class FactorPlan:
    """A plan over the factors of LoRA experts, `factor_pool`; its products are added to the base.

    ``base + scale (sum_i w_i B_i) (sum_i w_i A_i)`` for task arithmetic with weights w: not the
    sum of the products, which a plan over the experts themselves gives. A scale s of all task
    vectors counts twice.

    Source: MERGEvolve, arXiv 2606.28373, as its released code runs it.
    """

    plan: Plan
    named_experts: ClassVar[None] = None

    @property
    def name(self) -> str:
        """The plan's name, and that it is over factors."""
        return f"{self.plan.name} of factors"

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> FactorWeights:
        """Returns the parameters, computed when read; errors as of `factor_pool` and the plan."""
        factors = self.plan.weights(factor_pool(pool), dtype=torch.float32)
        return FactorWeights(pool, factors, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `plan_from_description`."""
        return {"kind": "factors", "factors": self.plan.describe()}


class FactorWeights(LazyWeights):
    """Base plus the products of factors; every read computes one parameter.

    `factors` are float32, by the names of `factor_pool`; raises MergeError as that does.
    """

    def __init__(self, pool: ExpertPool, factors: Weights, dtype: torch.dtype | None) -> None:
        super().__init__(pool.names)
        self._pool, self._factors, self._dtype = pool, factors, dtype
        self._layers = _layers(pool)

    def deltas(self) -> Iterator[tuple[str, Factors | Tensor]]:
        """Yields the delta of each tensor that adapters change: factors, or a full tensor."""
        for name, layer in self._layers.items():
            if layer is None:
                yield name, self._factors[name].float() - self._pool.base_tensor(name).float()
            else:
                a, b = (self._factors[name + side] for side in _SIDES)
                yield name, Factors(a, b, layer.scale, layer.transposed)

    def _tensor(self, name: str) -> Tensor:
        base, layer = self._pool.base_tensor(name), self._layers.get(name)
        merged = base.float()
        if layer is not None:
            a, b = (self._factors[name + side] for side in _SIDES)
            merged = merged + layer.product(a, b)
        elif name in self._layers:
            merged = self._factors[name]
        return merged.to(self._dtype or base.dtype)


class _FactorBase(LazyWeights):
    """The base without adapters: zeros where factors are, its own tensors where copies are."""

    def __init__(self, pool: ExpertPool, layers: Mapping[str, _Layer | None]) -> None:
        self._pool = pool
        self._shapes: dict[str, torch.Size] = {}
        for name, layer in layers.items():
            if layer is None:
                self._shapes[name] = pool.base.shape(name)
            else:
                self._shapes |= {
                    name + side: shape for side, shape in zip(_SIDES, layer.shapes, strict=True)
                }
        super().__init__(self._shapes)

    def shape(self, name: str) -> torch.Size:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if name.endswith(_SIDES) else self._pool.base.dtype(name)

    def _tensor(self, name: str) -> Tensor:
        if not name.endswith(_SIDES):
            return self._pool.base_tensor(name)
        return torch.zeros(self._shapes[name], device=self._pool.device)


@dataclass(frozen=True, eq=False)
class _FactorExpert:
    """One adapter, seen from a base without factors."""

    source: str
    sha256: str
    adapter: Adapter
    layers: Mapping[str, _Layer | None]

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes the factor, or the full tensor minus the base, float32, into `out`."""
        stem, side = name[: -len(_SIDES[0])], name[-len(_SIDES[0]) :]
        layer, factors = self.layers.get(stem), self.adapter.factors(stem)
        if side not in _SIDES or layer is None or factors is None:
            self.adapter.fill(name, base, out)
        elif side == ".lora_A":
            out.copy_(factors.a)
        elif factors.scale == layer.scale:
            out.copy_(factors.b)
        else:
            out.copy_(factors.b.double() * (factors.scale / layer.scale))


def _layers(pool: ExpertPool) -> dict[str, _Layer | None]:
    """Returns tensor -> how its factors multiply, None where adapters bring the full tensor.

    Tensors that none of the pool's experts changes are left out.
    """
    adapters: dict[str, Adapter] = {}
    for name, expert in pool.experts.items():
        if not isinstance(expert, Adapter):
            raise MergeError(
                f"expert {name!r} is a whole checkpoint and has no factors A and B: {_REMEDY}"
            )
        adapters[name] = expert
    layers: dict[str, _Layer | None] = {}
    for name in pool.names:
        if any(adapter.factors(name) for adapter in adapters.values()):
            layers[name] = _layer(name, adapters, pool)
        elif any(adapter.copy(name) is not None for adapter in adapters.values()):
            layers[name] = None
    return layers


def _layer(name: str, adapters: Mapping[str, Adapter], pool: ExpertPool) -> _Layer:
    by_expert: dict[str, Factors] = {}
    for expert, adapter in adapters.items():
        factors = adapter.factors(name)
        if brings_other_copy(adapter, name, pool):
            raise MergeError(
                f"expert {expert!r} brings {name} as a whole tensor, of which factors are "
                f"averaged: {_REMEDY}"
            )
        if factors is None:
            raise MergeError(
                f"expert {expert!r} has no factors of {name}, which other experts change: "
                f"A and B cannot be averaged; {_REMEDY}"
            )
        by_expert[expert] = factors
    (first, reference), *_ = by_expert.items()
    for expert, factors in by_expert.items():
        if len(factors.a) != len(reference.a):
            raise MergeError(
                f"{name} has rank {len(reference.a)} in expert {first!r} and rank "
                f"{len(factors.a)} in expert {expert!r}: A and B can only be averaged at equal "
                f"rank; {_REMEDY}"
            )
    equal = all(factors.scale == reference.scale for factors in by_expert.values())
    shapes = reference.a.shape, reference.b.shape
    return _Layer(shapes, reference.scale if equal else 1.0, reference.transposed)


def brings_other_copy(adapter: Adapter, name: str, pool: ExpertPool) -> bool:
    """Whether an adapter brings a tensor in full that differs from the base's.

    Beside the factors of an embedding peft saves the base's embedding, as it was.
    """
    copy = adapter.copy(name)
    return copy is not None and not torch.equal(copy.float(), pool.base_tensor(name).float())
