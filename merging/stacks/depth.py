"""Depth: a model with another number of layers than its base, in memory and on disk."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from merging.checkpoints import naming
from merging.checkpoints.checkpoint import Checkpoint, load
from merging.grouping import layer_of
from merging.method import MergeError
from merging.stacks.layers import LayerMap, kinds_of, restacked, set_layers
from merging.weights import CheckpointError, LazyWeights


class Restacked(LazyWeights):
    """A checkpoint of the base's kind with other layers: the base's `origins`, in this order.

    Configuration, names and module are those that transformers gives a model of these layers,
    each with its entry where the configuration has one per layer. Tensors of the base's file that
    its class does not use are kept where they lie in no layer.
    Raises MergeError where no model of that depth can be described.

    Attributes:
        changed: entries of the configuration that are not those of the base's file.
    """

    def __init__(self, base: Checkpoint, origins: Sequence[int]) -> None:
        self.layers, self._origins = LayerMap.of(base), tuple(origins)
        if base.file_names is None:
            raise MergeError(
                f"depth {len(origins)}: transformers converts the tensors of {base.source} "
                "between file and module, so its layers cannot be changed: leave depth at "
                f"{self.layers.count}"
            )
        self.source, self.path, self.kind = base.source, base.path, base.kind
        self.architecture = base.architecture
        self.stored, self.trusted = base.stored, base.trusted
        self.config = _described(base, self._origins)
        own, before = self.config.to_dict(), base.config.to_dict()
        self.inputs = base.inputs
        self.changed = dict(base.changed)
        self.changed |= {key: value for key, value in own.items() if before.get(key) != value}
        self._base = base
        self._origin = {
            name: self._filling(name) for name in self.layers.names(base, len(origins))
        }
        super().__init__(self._origin)
        self.file_names = {
            name: self._renumbered(base.file_names[origin], name)
            for name, origin in self._origin.items()
        }
        stacks = {_stack(base.file_names[name]) for name in base if self.layers.holds(name)}
        self.unused = tuple(name for name in base.unused if _stack(name) not in stacks)
        self._check_skeleton(len(origins))

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading it."""
        return self._base.shape(self._origin[name])

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype in the base's file without reading it."""
        return self._base.dtype(self._origin[name])

    def needed(self, merged: Sequence[str]) -> list[str]:
        """Returns what the base cannot give: all layers, and the tensors that a pool merges."""
        outer = frozenset(merged)
        return [name for name in self if name in outer or self.layers.holds(name)]

    def module(self, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Returns a new module of this depth; raises CheckpointError where a tensor lacks."""
        state = {self.file_names[name]: self[name].clone() for name in self}
        module, report = load(self.architecture, self.config, dtype, self.inputs, state)
        if missing := sorted(set(report["missing_keys"]) & set(self)):
            raise CheckpointError(
                f"{self.source}: transformers finds no place for {naming.listing(missing)} at "
                "another depth: leave the depth as it is"
            )
        return module.to(device).eval().requires_grad_(False)

    def _tensor(self, name: str) -> Tensor:
        return self._base[self._origin[name]]

    def _filling(self, name: str) -> str:
        """Returns the base's tensor that a tensor of this depth holds."""
        position = layer_of(name) if self.layers.holds(name) else None
        if position is None:
            return name
        stack, layer = position
        inside = name.removeprefix(f"{stack}.{layer}.")
        return self.layers.name(self._origins[layer], inside)

    def _renumbered(self, file_name: str, name: str) -> str:
        """Returns the name in a file of `name`, from that of its filling."""
        position, in_file = layer_of(name), layer_of(file_name)
        if position is None or in_file is None or not self.layers.holds(name):
            return file_name
        stack, layer = in_file
        return f"{stack}.{position[1]}.{file_name.removeprefix(f'{stack}.{layer}.')}"

    def _check_skeleton(self, layers: int) -> None:
        """Compares names and shapes with what transformers builds at that depth."""
        module = naming.skeleton(self.architecture, self.config)
        aliases = set(naming.tied(module)) - set(self)  # the base's file may untie them
        built = {n: t.shape for n, t in module.state_dict().items() if n not in aliases}
        wrong = sorted(
            n for n in {*built, *self} if n not in self or built.get(n) != self.shape(n)
        )
        if wrong:
            raise MergeError(
                f"depth {layers}: {self.architecture.__name__} of {layers} layers has other "
                f"tensors ({naming.listing(wrong)}): leave depth at {self.layers.count}"
            )


class AdjustableDepth:
    """A module with as many layers as ever asked for, whose stack is shortened and given back."""

    def __init__(self, module: nn.Module, layers: LayerMap) -> None:
        parent, _, self._child = layers.stack.rpartition(".")
        self._parent = module.get_submodule(parent)
        stack = self._parent.get_submodule(self._child)
        assert isinstance(stack, nn.ModuleList)
        self._all = tuple(stack)
        self._base_layers = layers.count
        configs = (getattr(child, "config", None) for child in module.modules())
        by_id = {id(c): c for c in configs if hasattr(c, "num_hidden_layers")}
        self._configs = list(by_id.values())

    def set(self, layers: int | None) -> None:
        """Leaves that many layers, None: the base's; raises ValueError for more than there are."""
        layers = layers or self._base_layers
        if layers > len(self._all):
            raise ValueError(
                f"the candidate has {layers} layers, the model in memory {len(self._all)}: "
                "build it with the depth of the search space"
            )
        setattr(self._parent, self._child, nn.ModuleList(self._all[:layers]))
        for config in self._configs:
            set_layers(config, [0] * layers)  # all of one kind, see `LayerMap.check_depth`


def _stack(file_name: str) -> str | None:
    position = layer_of(file_name)
    return None if position is None else position[0]


def _described(base: Checkpoint, origins: Sequence[int]) -> Any:
    """Returns the base's configuration with these layers, read back as from a file."""
    config = restacked(base.config, origins)
    try:
        read = type(config).from_dict(config.to_dict())
    except ValueError as error:
        raise MergeError(
            f"depth {len(origins)}: transformers refuses that depth for model_type "
            f"{config.model_type!r} ({str(error).splitlines()[0]}): leave the depth as it is"
        ) from None
    if kinds_of(read) != kinds_of(config):
        raise MergeError(
            f"depth {len(origins)}: model_type {config.model_type!r} has a fixed depth, or fixed "
            "kinds of layers: leave them as they are"
        )
    return config
