"""config.json of a merged model: the base's own text but for what the merge changes.

Never written by transformers, whose release of today would give it a form that readers of the
base's form (another release, other programs) take for something else.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_DTYPES = ("dtype", "torch_dtype")  # today's name, and transformers 4's


def write_config(
    source: Path,
    target: Path,
    *,
    architecture: str,
    dtype: torch.dtype | None,
    changed: Mapping[str, Any],
    reader: Callable[[], type[PreTrainedConfig]],
) -> None:
    """Writes ``target/config.json``: the file in `source`, byte for byte where nothing changes.

    Args:
        architecture: name of the class that the weights are for.
        dtype: of the weights where the merge changes it; None: as in the base.
        changed: entries of the configuration that a stack of layers changes.
        reader: returns the class that reads the configuration.
    """
    file = source / "config.json"
    old = json.loads(file.read_text(encoding="utf-8"))
    new = copy.deepcopy(old)
    new.pop("transformers_weights", None)  # names a file of the base
    if (new.get("architectures") or [None])[0] != architecture:
        new["architectures"] = [architecture]
    if dtype is not None:
        _set_dtype(new, str(dtype).removeprefix("torch."))
    if changed:
        _set_entries(new, changed, reader())
    if new == old:
        shutil.copyfile(file, target / "config.json")
    else:
        text = json.dumps(new, indent=2, ensure_ascii=False) + "\n"
        (target / "config.json").write_text(text, encoding="utf-8")


def _set_dtype(content: dict[str, Any], dtype: str) -> None:
    """Replaces the dtype under the name that the file has for it, in its parts, too."""
    for key, value in content.items():
        if key in _DTYPES:
            content[key] = dtype
        elif key.endswith("_config") and isinstance(value, dict):
            _set_dtype(value, dtype)


def _set_entries(
    content: dict[str, Any], changed: Mapping[str, Any], kind: type[PreTrainedConfig]
) -> None:
    """Sets entries under the names of the file; those that no reader would compute are added."""
    names = {kind.attribute_map.get(key, key): key for key in content}  # GPT-2's n_layer
    known = {key: names.get(kind.attribute_map.get(key, key)) for key in changed}
    content.update({name: changed[key] for key, name in known.items() if name})
    read = kind.from_dict(copy.deepcopy(content)).to_dict()
    content.update({key: value for key, value in changed.items() if read.get(key) != value})
