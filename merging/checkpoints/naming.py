"""Names: which tensor of a file is which tensor of the module, found without reading data."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from merging.grouping import layer_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Buffers that older releases saved and today's modules compute.
_LEGACY = re.compile(
    r"(rotary_emb\.(inv_freq|cos_cached|sin_cached)|embeddings\.position_ids"
    r"|attn\.(masked_)?bias|attention\.(masked_)?bias)$"
)


@dataclass(frozen=True, eq=False)
class Naming:
    """How the names of a file and of a module correspond.

    Args:
        keys: module name, tied aliases left out -> name in the file; in the module's order.
        twins: (module name, first file name, second file name): what should be one tensor, stored
            twice; the second is that of a tied alias, or an older name beside today's.
        missing: names of the module alone; `extra`: of the file alone.
        unused: of the file alone, and meant to be: the class is known not to read them.
    """

    keys: dict[str, str] = field(default_factory=dict)
    twins: list[tuple[str, str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def skeleton(architecture: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Returns the module without data (on the meta device): its names, shapes and layer types."""
    with torch.device("meta"):
        return architecture(copy.deepcopy(config))


def tied(module: nn.Module) -> dict[str, str]:
    """Returns alias -> first name of the same parameter, for every tied parameter."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name:
            aliases[name] = kept
    return aliases


def untie(module: nn.Module, alias: str) -> bool:
    """Gives a tied parameter a tensor of its own; returns whether the class can hold both."""
    if alias not in tied(module):
        return False
    owner, _, name = alias.rpartition(".")
    parent = module.get_submodule(owner)
    own = nn.Parameter(torch.empty_like(module.get_parameter(alias)), requires_grad=False)
    setattr(parent, name, own)
    return alias not in tied(module)  # two names of one layer stay one


def match(module: PreTrainedModel, file_names: Iterable[str]) -> Naming | None:
    """Returns the naming, or None where transformers converts tensors and not only their names.

    transformers 5 renames (GPT-NeoX, ViT) and fuses (Mixtral) tensors between file and module; its
    own renaming rules are asked.
    """
    found, converted = renamed(module, list(file_names))
    if converted:
        return None
    state = module.state_dict()
    naming = Naming()
    stored: dict[str, str] = {}  # module name, aliases included -> file name
    for file_name, name in found.items():
        if name not in state:
            _place_unknown(module, file_name, name, naming)
        elif name in stored:
            naming.twins.append((name, stored[name], file_name))
        else:
            stored[name] = file_name
    aliases = tied(module)
    for name in state:
        if name in aliases:
            continue
        group = [name, *(alias for alias, kept in aliases.items() if kept == name)]
        held = [each for each in group if each in stored]
        if not held:
            if not _absent(module, name):
                naming.missing.append(name)
            continue
        first, *others = held
        naming.keys[name] = stored[first]
        naming.twins.extend((other, stored[first], stored[other]) for other in others)
    return naming


def unused(module: PreTrainedModel, file_names: Iterable[str]) -> list[str]:
    """Returns the names of a file that the class is known not to read, where it converts tensors.

    A name stands for the first of the tensors that its own is converted to.
    """
    naming = Naming()
    state = module.state_dict()
    found, _ = renamed(module, list(file_names))
    for file_name, name in found.items():
        if name not in state:
            _place_unknown(module, file_name, name, naming)
    return naming.unused


def _place_unknown(module: PreTrainedModel, file_name: str, name: str, naming: Naming) -> None:
    if _LEGACY.search(file_name):
        return
    known = _ignored(module, name) or _ignored(module, file_name) or _predicts(module, name)
    (naming.unused if known else naming.extra).append(file_name)


def listing(names: Sequence[str]) -> str:
    """Returns the first three of `names` and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _ignored(module: PreTrainedModel, name: str) -> bool:
    patterns: Iterable[str] = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _absent(module: PreTrainedModel, name: str) -> bool:
    """Whether files may lack it: the class computes it (Marian's table of positions)."""
    patterns: Iterable[str] = getattr(module, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _predicts(module: PreTrainedModel, name: str) -> bool:
    """Whether it lies in a layer behind the last, as configurations count those of MTP heads."""
    config, position = getattr(module.config, "text_config", module.config), layer_of(name)
    layers = getattr(config, "num_hidden_layers", None)
    promised = getattr(config, "num_nextn_predict_layers", None)
    return bool(position and layers and promised and position[1] >= layers)


def renamed(module: PreTrainedModel, file_names: list[str]) -> tuple[dict[str, str], bool]:
    """Returns file name -> module name, and whether a tensor is converted, not only renamed."""
    state = module.state_dict()
    aliases = tied(module)
    same = {name: name for name in file_names}
    needed = {aliases.get(name, name) for name in state}
    if needed <= {aliases.get(name, name) for name in file_names}:
        return same, False  # nothing to rename: ask no private function
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # they move between releases; loading through the class is always right
        return same, True
    rules = get_model_conversion_mapping(module)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters: list[Any] = [rule for rule in rules if not isinstance(rule, WeightRenaming)]
    prefix = module.base_model_prefix
    names, converted = {}, False
    for file_name in file_names:
        name, converter = rename_source_key(file_name, renamings, converters, prefix, state)
        converted |= converter is not None
        if name not in state and file_name in state:
            name = file_name
        names[file_name] = name
    return names, converted
