"""Layer stacks: a model whose layers are taken from anywhere in the base and its experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.method import MergeError
from merging.plan import Plan
from merging.stacks.layers import LayerMap, scaled
from merging.weights import LazyWeights, Weights

BASE = "base"
"""The source that is the base model."""

MERGED = "merged"
"""The source that is a merge of the experts, or any other plan."""


@dataclass(frozen=True)
class StackedLayer:
    """One layer of a stack: which layer of which model it is, and how much it contributes.

    Args:
        layer: index of the layer in the model that it comes from.
        source: an expert's name, ``base`` or ``merged``.
        scale: factor s of what attention and MLP add to the residual stream, ``x + s f(x)``; 0:
            the layer does nothing, exactly as if it were not there.
    """

    layer: int
    source: str
    scale: float = 1.0


@dataclass(frozen=True)
class LayerStackPlan:
    """Which layer of which model comes next, from the embedding to the head.

    Tensors that the pool does not merge (adapters touch few) are the base's, of the layer that is
    taken. Layers keep their own key-value cache: the model is one of its architecture with as
    many layers as there are places.

    Args:
        places: from first to last; at least one.
        outer: source of what lies outside the layers: embeddings, last norm, head.
        merged: what ``merged`` is; None: nothing.
        behind: source of what lies behind the layers (last norm, head); None: as `outer`.
        factors: parameter of the stack -> what it is multiplied with.

    Source: Akiba et al. 2024, Evolutionary optimization of model merging recipes, section 3.2
        (data flow space), arXiv 2403.13187. There one scale per pair of layers multiplies what
        enters a layer, and layers come in the order of the repeated list of all layers with
        indicators of which are left out; here every place chooses freely, and the scale multiplies
        what a layer adds, so that it can be written into the weights and the model loads anywhere.
    """

    places: tuple[StackedLayer, ...]
    outer: str = BASE
    merged: Plan | None = None
    behind: str | None = None
    factors: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What reports call it."""
        return "LayerStack"

    @property
    def named_experts(self) -> frozenset[str] | None:
        """The sources that are experts, and those that the merge names; None: it may read all."""
        merged = frozenset[str]() if self.merged is None else self.merged.named_experts
        return None if merged is None else merged | (self.sources - {BASE, MERGED})

    @property
    def sources(self) -> frozenset[str]:
        """All sources that a place or what is outside names."""
        return frozenset(
            {self.outer, self.behind or self.outer, *(place.source for place in self.places)}
        )

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> StackedWeights:
        """Returns the stack's parameters, computed when read, scaled in float32.

        A layer of a LoRA expert is taken as the expert would be saved, in the base's dtype. Raises
        MergeError where the layers cannot be rearranged, or a place makes no sense in this model.
        """
        layers = LayerMap.of(pool.base)
        _check(self, layers, pool)
        return StackedWeights(self, layers, pool, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `from_description`."""
        return {
            "kind": "layer_stack",
            "places": [asdict(place) for place in self.places],
            "outer": self.outer,
            "merged_source": None if self.merged is None else self.merged.describe(),
            "behind": self.behind,
            "factors": dict(self.factors),
        }

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], merged: Plan | None
    ) -> LayerStackPlan:
        """Returns what `describe` wrote, from the plan of ``merged_source``; raises ValueError."""
        places, outer = description.get("places"), description.get("outer")
        if not isinstance(places, list) or not isinstance(outer, str):
            raise ValueError("recipe: a layer stack needs a list of 'places' and a name 'outer'")
        layers = tuple(_read_layer(i, place) for i, place in enumerate(places))
        behind, factors = description.get("behind"), description.get("factors", {})
        if not isinstance(behind, str | None) or not isinstance(factors, Mapping):
            raise ValueError("recipe: of a layer stack, 'behind' is a name, 'factors' a table")
        return cls(layers, outer, merged, behind, _read_factors(factors))


class StackedWeights(LazyWeights):
    """A stack's parameters over a pool; every read computes one.

    They are all parameters of all layers, and those outside that the pool merges: what stands in
    a place replaces it whole, whoever stood there before.

    Attributes:
        origins: for every layer of the model, which one of the base's it is described as.
    """

    def __init__(
        self, plan: LayerStackPlan, layers: LayerMap, pool: ExpertPool, dtype: torch.dtype | None
    ) -> None:
        self.origins = tuple(place.layer for place in plan.places)
        outer = [name for name in pool.base if layers.holds(name) or name in pool.names]
        super().__init__(layers.names(outer, len(self.origins)))
        self._plan, self._map, self._pool, self._dtype = plan, layers, pool, dtype
        self._sources = {source: _source(plan, source, pool) for source in plan.sources}
        self._behind = layers.behind(pool.base)
        self._places = {
            layers.name(i, inside): (place, inside)
            for i, place in enumerate(plan.places)
            for inside in layers.inside
        }

    def _tensor(self, name: str) -> Tensor:
        origin, tensor = self._unscaled(name)
        if (factor := self._plan.factors.get(name, 1.0)) != 1:
            tensor = tensor.float() * factor
        return self._cast(origin, tensor)

    def _unscaled(self, name: str) -> tuple[str, Tensor]:
        """Returns the base's tensor that stands for `name`, and the value without its factor."""
        if name not in self._places:
            behind = self._plan.behind if name in self._behind else None
            return name, self._read(behind or self._plan.outer, name)
        place, inside = self._places[name]
        origin = self._map.name(place.layer, inside)
        tensor, added = self._read(place.source, origin), self._map.added(inside)
        if place.scale != 1 and added is not None:
            tensor = scaled(tensor, place.scale, added)  # x + s f(x)
        return origin, tensor

    def _read(self, source: str, name: str) -> Tensor:
        weights = self._sources[source]
        if weights is not None and name in weights:
            return weights[name]
        return self._pool.base_tensor(name)

    def _cast(self, origin: str, tensor: Tensor) -> Tensor:
        own = self._pool.base.dtype(origin)
        return tensor.to(self._dtype if self._dtype and own.is_floating_point else own)

    def check_in_place(self) -> None:
        """Raises MergeError where a module of the base's would take a layer for another kind."""
        self._map.check_kinds(self.origins)


def layers_of(weights: Weights) -> int | None:
    """Returns how many layers weights are made for, where they are a stack's."""
    return len(weights.origins) if isinstance(weights, StackedWeights) else None


def _source(plan: LayerStackPlan, source: str, pool: ExpertPool) -> Weights | None:
    """Returns a source's tensors; None: the base's."""
    if source == BASE:
        return None
    if source == MERGED:
        assert plan.merged is not None
        weights = plan.merged.weights(pool, dtype=torch.float32)
        if layers_of(weights) not in (None, LayerMap.of(pool.base).count):
            raise MergeError(
                f"what layers are to be merged from is a stack of {layers_of(weights)} layers "
                "itself, the experts have others: start from a merge of the base's depth"
            )
        return weights
    return pool.expert_weights(source)


def _check(plan: LayerStackPlan, layers: LayerMap, pool: ExpertPool) -> None:
    if not plan.places:
        raise MergeError("the layer stack is empty: give it at least one place")
    if pool.heads and len(plan.places) != layers.count:
        raise MergeError(
            f"depth {len(plan.places)}: classifiers keep the depth of their encoder: leave depth "
            f"at {layers.count}"
        )
    for name in (MERGED, BASE):
        if name in pool.expert_names:
            raise MergeError(f"an expert is called {name!r}, a word of layer stacks: rename it")
    known = (BASE, *((MERGED,) if plan.merged else ()), *pool.expert_names)
    places = {f"place {i}": place.source for i, place in enumerate(plan.places)}
    for where, source in (*places.items(), ("outer", plan.outer), ("behind", plan.behind)):
        if source is not None and source not in known:
            raise MergeError(
                f"{where}: {source!r} is no source, expected one of {', '.join(known)}"
            )
    for i, place in enumerate(plan.places):
        _check_place(i, place, layers)
    if pool.heads:
        layers.check_kinds([place.layer for place in plan.places])


def _check_place(i: int, place: StackedLayer, layers: LayerMap) -> None:
    if not 0 <= place.layer < layers.count:
        raise MergeError(
            f"place {i}: there is no layer {place.layer}, the base has {layers.count}"
        )
    if not math.isfinite(place.scale):
        raise MergeError(f"place {i}: scale {place.scale} is no finite number")
    if place.scale != 1:
        layers.check_scaling()


def _read_layer(i: int, value: Any) -> StackedLayer:
    kinds = {"layer": (int,), "source": (str,), "scale": (int, float)}
    if not isinstance(value, Mapping) or set(value) != set(kinds):
        raise ValueError(f"recipe: place {i} must have layer, source and scale, got {value!r}")
    for key, kind in kinds.items():
        if isinstance(value[key], bool) or not isinstance(value[key], kind):
            raise ValueError(f"recipe: {key} of place {i} makes no sense: {value[key]!r}")
    return StackedLayer(value["layer"], value["source"], float(value["scale"]))


def _read_factors(factors: Mapping[str, Any]) -> dict[str, float]:
    for name, factor in factors.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise ValueError(f"recipe: factor of {name} makes no sense: {factor!r}")
    return {name: float(factor) for name, factor in factors.items()}
