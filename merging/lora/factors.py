"""LoRA experts as their factors A and B: what the released MERGEvolve averages and perturbs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from merging.checkpoints.adapters import Adapter, Factors
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.privacy_record import PrivacyRecord
from merging.method import MergeError
from merging.plan import Plan
from merging.weights import Weights

_SIDES = (".lora_A", ".lora_B")
_REMEDY = "choose space=full_weights, which works on the products B @ A"


@dataclass(frozen=True)
class _Layer:
    """How the factors of one tensor become its difference to the base.

    Attributes:
        shapes: of A and B.
        scale: of the product; 1 where the experts' scales differ: each B then carries its own.
        transposed: whether the layer stores its weight as (in, out).
    """

    shapes: tuple[torch.Size, torch.Size]
    scale: float
    transposed: bool

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns the difference, ``(*shape of the weight)`` float32: in float64, rounded once."""
        return Factors(a, b, self.scale, self.transposed).product().float()


def factor_pool(pool: ExpertPool) -> ExpertPool:
    """Returns a pool whose tensors are the adapters' factors, on the same device.

    Every tensor that adapters change by ``scale * B @ A`` becomes two, NAME.lora_A ``(rank, in)``
    and NAME.lora_B ``(out, rank)``, zero in the base; a tensor that adapters bring whole
    (``modules_to_save``) stays as it is. Merges, noise and paths work on it as on any pool.

    Raises:
        MergeError: an expert is no adapter, or the experts' factors of a tensor cannot be
            averaged: unequal ranks, none in one of them, or a whole tensor in another.
    """
    layers = _layers(pool)
    base = _FactorBase(pool, layers)
    experts = {
        name: _FactorExpert(expert, layers)
        for name, expert in pool.experts.items()
        if isinstance(expert, Adapter)
    }
    names = tuple(base)
    # The pool reads no more of its base than weights, shapes and dtypes.
    return ExpertPool(cast(Checkpoint, base), experts, names, (), pool.device, base)


@dataclass(frozen=True)
class FactorPlan:
    """A plan over the factors of LoRA experts; its products are added to the base.

    ``base + scale (sum_i w_i B_i) (sum_i w_i A_i)`` for task arithmetic with weights w: not the
    sum of the products, which a plan over the experts themselves gives. A scale s of all task
    vectors counts twice.

    Args:
        plan: makes one A and one B of every tensor; over `factor_pool`.

    Source: MERGEvolve, arXiv 2606.28373, as its released code runs it.
    """

    plan: Plan

    @property
    def name(self) -> str:
        """The plan's name, and that it is over factors."""
        return f"{self.plan.name} of factors"

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> FactorWeights:
        """Returns the parameters, computed when read.

        Args:
            pool: base and LoRA experts.
            dtype: of the result; None: each parameter's dtype in the base.

        Raises:
            MergeError: as `factor_pool` and the plan raise.
        """
        factors = self.plan.weights(factor_pool(pool), dtype=torch.float32)
        return FactorWeights(pool, factors, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `plan_from_description`."""
        return {"kind": "factors", "factors": self.plan.describe()}


class FactorWeights(Mapping[str, Tensor]):
    """Base plus the products of given factors; every read computes one parameter.

    Args:
        pool: base and LoRA experts.
        factors: by the names of `factor_pool`, float32.
        dtype: of the result; None: each parameter's dtype in the base.

    Raises:
        MergeError: as `factor_pool` raises.
    """

    def __init__(self, pool: ExpertPool, factors: Weights, dtype: torch.dtype | None) -> None:
        self._pool, self._factors, self._dtype = pool, factors, dtype
        self._layers = _layers(pool)

    def differences(self) -> Iterator[tuple[str, Factors | Tensor]]:
        """Yields what is added to each tensor that differs from the base: factors, or a whole."""
        for name, layer in self._layers.items():
            if layer is None:
                whole = self._factors[name].float()
                yield name, whole - self._pool.base_tensor(name).float()
            else:
                a, b = (self._factors[name + side] for side in _SIDES)
                yield name, Factors(a, b, layer.scale, layer.transposed)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        base, layer = self._pool.base_tensor(name), self._layers.get(name, None)
        whole = base.float()
        if layer is not None:
            a, b = (self._factors[name + side] for side in _SIDES)
            whole = whole + layer.product(a, b)
        elif name in self._layers:
            whole = self._factors[name]
        return whole.to(self._dtype or base.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._pool.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._pool.names)

    def __len__(self) -> int:
        return len(self._pool.names)


class _FactorBase(Mapping[str, Tensor]):
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

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape."""
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype: float32 for factors."""
        return torch.float32 if name.endswith(_SIDES) else self._pool.base.dtype(name)

    def __getitem__(self, name: str) -> Tensor:
        if not name.endswith(_SIDES):
            return self._pool.base_tensor(name)
        return torch.zeros(self._shapes[name], device=self._pool.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True, eq=False)
class _FactorExpert:
    """One adapter, seen from a base without factors."""

    adapter: Adapter
    layers: Mapping[str, _Layer | None]

    @property
    def source(self) -> str:
        """As the user named it."""
        return self.adapter.source

    @property
    def sha256(self) -> str:
        """Identity of the adapter."""
        return self.adapter.sha256

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes the factor, or the whole tensor minus the base, float32, into `out`."""
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

    def tensor(self, name: str, base: Tensor) -> Tensor:
        """Returns the factor itself."""
        whole = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        self.fill(name, base.float(), whole)
        return (base.float() + whole).to(base.dtype)

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Yields what the adapter stores."""
        yield from self.adapter.stored()

    def privacy(self) -> PrivacyRecord | None:
        """Returns the adapter's record."""
        return self.adapter.privacy()

    def to(self, device: torch.device) -> _FactorExpert:
        """Returns the same expert on `device`."""
        return _FactorExpert(self.adapter.to(device), self.layers)


def _layers(pool: ExpertPool) -> dict[str, _Layer | None]:
    """Returns tensor -> how its factors multiply, None where adapters bring the whole tensor.

    Tensors that none of the pool's experts changes are left out.
    """
    adapters: dict[str, Adapter] = {}
    for expert, opened in pool.experts.items():
        if not isinstance(opened, Adapter):
            raise MergeError(
                f"expert {expert!r} is a whole checkpoint and has no factors A and B: {_REMEDY}"
            )
        adapters[expert] = opened
    layers: dict[str, _Layer | None] = {}
    for name in pool.names:
        if any(adapter.factors(name) for adapter in adapters.values()):
            layers[name] = _layer(name, adapters, pool)
        elif any(adapter.copy(name) is not None for adapter in adapters.values()):
            layers[name] = None
    return layers


def _layer(name: str, adapters: Mapping[str, Adapter], pool: ExpertPool) -> _Layer:
    found: dict[str, Factors] = {}
    for expert, adapter in adapters.items():
        factors = adapter.factors(name)
        copy = adapter.copy(name)
        # Beside the factors of an embedding peft saves the base's embedding, as it was.
        if copy is not None and not torch.equal(copy.float(), pool.base_tensor(name).float()):
            raise MergeError(
                f"expert {expert!r} brings {name} as a whole tensor, of which factors are "
                f"averaged: {_REMEDY}"
            )
        if factors is None:
            raise MergeError(
                f"expert {expert!r} has no factors of {name}, which other experts change: "
                f"A and B cannot be averaged; {_REMEDY}"
            )
        found[expert] = factors
    (first, one), *_ = found.items()
    for expert, factors in found.items():
        if len(factors.a) != len(one.a):
            raise MergeError(
                f"{name} has rank {len(one.a)} in expert {first!r} and rank {len(factors.a)} in "
                f"expert {expert!r}: A and B can only be averaged at equal rank; {_REMEDY}"
            )
    equal = all(factors.scale == one.scale for factors in found.values())
    return _Layer((one.a.shape, one.b.shape), one.scale if equal else 1.0, one.transposed)
