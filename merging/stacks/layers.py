"""Layers: where a model keeps them, what tells one from another, and how many there may be."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from merging.checkpoints.naming import listing
from merging.grouping import layer_of
from merging.method import MergeError

_LINEAR = {"self_attn.o_proj": 0.0, "mlp.down_proj": 0.0}
_NORMED = {"post_attention_layernorm": 1.0, "post_feedforward_layernorm": 1.0}
_RESIDUAL: Mapping[str, Mapping[str, float]] = {
    "llama": _LINEAR,
    "mistral": _LINEAR,
    "qwen2": _LINEAR,
    "qwen3": _LINEAR,
    "gemma": _LINEAR,
    "gemma2": _NORMED,
    "gemma3_text": _NORMED,
    "gpt_neox": {"attention.dense": 0.0, "mlp.dense_4h_to_h": 0.0},
    "gpt2": {"attn.c_proj": 0.0, "mlp.c_proj": 0.0},
}
"""Model type to the modules that write into the residual stream, and what they add to weights.

Gemma 2 and 3 normalise a branch last, with ``norm(x) * (1 + weight)``: there the norm is scaled.
"""


@dataclass(frozen=True)
class LayerMap:
    """The one stack of layers of a model.

    Args:
        stack: path of the list of layers, for example ``model.layers``.
        inside: parameters of every layer, by their names within it, in the module's order.
        kinds: what the configuration says of each layer alone (sliding or full attention); layers
            of one kind can stand in each other's place.
        residual: module within a layer that writes into the residual stream -> what is added to
            its weight when it is used; empty where that is not known of this architecture.
    """

    stack: str
    count: int
    inside: tuple[str, ...]
    kinds: tuple[str, ...]
    residual: Mapping[str, float]
    model_type: str

    @classmethod
    def of(cls, base: Any) -> LayerMap:
        """Returns the layers of a checkpoint, from its names, shapes and configuration.

        Raises:
            MergeError: no layers, or several stacks of them; layers that are not alike; or a
                configuration under which a layer does not mean the same elsewhere.
        """
        layers: dict[str, dict[int, list[str]]] = {}
        for name in base:
            if position := layer_of(name):
                stack, layer = position
                layers.setdefault(stack, {}).setdefault(layer, []).append(name)
        if len(layers) != 1:
            raise MergeError(
                f"a layer stack needs a model with one stack of layers, {base.source} has "
                f"{', '.join(layers) or 'none'}: use a space of coefficients"
            )
        ((stack, names),) = layers.items()
        _check_count(base, stack, names)
        inside = tuple(name.removeprefix(f"{stack}.0.") for name in names[0])
        _check_alike(base, stack, inside, names)
        kinds, model_type = kinds_of(base.config), str(base.config.model_type)
        residual = _RESIDUAL.get(model_type, {})
        return cls(stack, len(names), inside, kinds, residual, model_type)

    def name(self, layer: int, inside: str) -> str:
        """Returns a parameter's whole name."""
        return f"{self.stack}.{layer}.{inside}"

    def names(self, outer: Iterable[str], layers: int) -> list[str]:
        """Returns `outer`, with the parameters of `layers` layers where the first layer stands.

        Args:
            outer: names in the module's order; those inside the stack count for their place only.
        """
        ordered: list[str] = []
        placed = False
        for name in outer:
            if not self.holds(name):
                ordered.append(name)
            elif not placed:
                ordered += [self.name(i, inside) for i in range(layers) for inside in self.inside]
                placed = True
        return ordered

    def holds(self, name: str) -> bool:
        """Whether a parameter lies in a layer."""
        return name.startswith(f"{self.stack}.")

    def behind(self, names: Iterable[str]) -> frozenset[str]:
        """Returns those of a module's names, in its order, that come behind its layers."""
        ordered = list(names)
        last = max(i for i, name in enumerate(ordered) if self.holds(name))
        return frozenset(ordered[last + 1 :])

    def added(self, inside: str) -> float | None:
        """Returns what is added to a residual output's parameter; None: it is none."""
        return self.residual.get(inside.rpartition(".")[0])

    def check_scaling(self) -> None:
        """Raises MergeError where no parameter holds what a layer adds to the residual stream.

        Encoders such as BERT normalise behind the sum, so that no factor stays one.
        """
        if not self.residual:
            raise MergeError(
                f"the layers of {self.model_type} cannot be scaled or skipped, only those of "
                f"{', '.join(_RESIDUAL)}: set scaling and skip to false"
            )

    def check_kinds(self, origins: Sequence[int]) -> None:
        """Raises MergeError where a layer would stand in the base's place for another kind."""
        for i, origin in enumerate(origins):
            kind = self.kinds[min(i, self.count - 1)]
            if self.kinds[origin] != kind:
                raise MergeError(
                    f"place {i}: layer {origin} is of kind {self.kinds[origin]}, the model's "
                    f"layer there is of kind {kind}: take one of that kind"
                )

    def check_depth(self, layers: int) -> None:
        """Raises MergeError where the base's module has no such depth, whatever stands there."""
        if layers < 1:
            raise MergeError(f"depth {layers}: a model needs at least one layer")
        other = next((kind for kind in self.kinds if kind != self.kinds[0]), None)
        if layers != self.count and other is not None:
            raise MergeError(
                f"depth {layers}: the configuration tells layers apart ({self.kinds[0]}, {other}, "
                f"...), so that a search keeps to their number: leave depth at {self.count}"
            )


def set_layers(config: Any, origins: Sequence[int]) -> None:
    """Makes a configuration, in place, that of its layers `origins` in this order."""
    for key, values in _per_layer(config, int(config.num_hidden_layers)).items():
        setattr(config, key, [values[origin] for origin in origins])
    config.num_hidden_layers = len(origins)


def restacked(config: Any, origins: Sequence[int]) -> Any:
    """Returns a copy of a configuration with other layers; see `set_layers`."""
    copied = copy.deepcopy(config)
    set_layers(copied, origins)
    return copied


def scaled(tensor: torch.Tensor, scale: float, added: float) -> torch.Tensor:
    """Returns ``scale (tensor + added) - added``, the weight of a residual output times `scale`.

    In float32; with scale 0 exact, whatever the tensor holds.
    """
    if scale == 0:
        return torch.full_like(tensor, -added, dtype=torch.float32)
    return (tensor.float() + added) * scale - added


def _check_count(base: Any, stack: str, layers: Mapping[int, list[str]]) -> None:
    count = getattr(base.config, "num_hidden_layers", None)
    if sorted(layers) != list(range(len(layers))) or count != len(layers):
        raise MergeError(
            f"{base.source} has {len(layers)} layers in {stack}, its config says "
            f"num_hidden_layers={count}: a layer stack needs a model that counts its layers there"
        )


def _check_alike(
    base: Any, stack: str, inside: tuple[str, ...], layers: Mapping[int, list[str]]
) -> None:
    for layer, names in layers.items():
        inside_layer = {name.removeprefix(f"{stack}.{layer}.") for name in names}
        if other := sorted(inside_layer ^ set(inside)):
            raise MergeError(
                f"{base.source}: layers 0 and {layer} of {stack} differ in {listing(other)}, so "
                "they cannot stand in each other's place: use a space of coefficients"
            )
        for name in inside:
            shape, first = base.shape(f"{stack}.{layer}.{name}"), base.shape(f"{stack}.0.{name}")
            if shape != first:
                raise MergeError(
                    f"{base.source}: {name} has shape {tuple(first)} in layer 0 and "
                    f"{tuple(shape)} in layer {layer} of {stack}, so they cannot stand in each "
                    "other's place: use a space of coefficients"
                )


def kinds_of(config: Any) -> tuple[str, ...]:
    """Returns what a configuration says of each layer alone; raises MergeError, see `LayerMap`."""
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise MergeError(
            "scale_attn_by_inverse_layer_idx is set in the base's config: a layer would mean "
            "something else at another depth: use a space of coefficients"
        )
    count = int(config.num_hidden_layers)
    lists = _per_layer(config, count)
    return tuple(
        json.dumps({key: values[i] for key, values in lists.items()}) for i in range(count)
    )


def _per_layer(config: Any, count: int) -> dict[str, list[Any]]:
    """Returns the entries of a configuration that hold one value for every layer."""
    per_layer = {}
    for key, value in config.to_dict().items():
        if "layer" in key and isinstance(value, list | tuple) and value:
            if len(value) != count:
                raise MergeError(
                    f"{key} in the base's config names single layers ({list(value)}): a layer "
                    "would mean something else at another depth: use a space of coefficients"
                )
            per_layer[key] = list(value)
    return per_layer
