"""Which files of a directory hold its weights: the ones that transformers, or peft, loads."""

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from merging.weights import CheckpointError

# Names in the order in which transformers and peft look for them; nothing else is ever opened.
_WHOLE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OTHER_FORMS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx*",
    "*.tflite",
    "*.ot",
)
"""Patterns of names under which weights lie in other forms than safetensors."""

_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")


def find_weights(
    directory: Path, *, adapter: bool = False
) -> tuple[tuple[Path, ...], Mapping[str, str]]:
    """Returns the weight files, in the order of their names, and what their index says.

    Args:
        adapter: those of the PEFT adapter that lies there.

    Returns:
        Files, and tensor -> name of its file; empty where one file is all.

    Raises:
        CheckpointError: no weights, a missing shard, or an index that cannot be read.
    """
    file = _first(directory, _ADAPTER if adapter else _named(directory) or _WHOLE)
    if file is None:
        raise CheckpointError(_none_found(directory, adapter))
    if file.suffix != ".json":
        return (file,), {}
    listed = _read_index(file)
    return _shards(file, listed), listed


MADE_HERE = ("recipe.json", "training.json", "dedup.json")
"""Files which say that evomerge trained, merged or deduplicated the model."""


def is_adapter(path: Path) -> bool:
    """Whether `path` is a PEFT adapter; a whole model that has one beside it is none."""
    whole = (path / "config.json").is_file() and holds_weights(path)
    return (path / "adapter_config.json").is_file() and not whole


def made_here(directory: Path) -> list[Path]:
    """Returns the files which say that evomerge trained, merged or deduplicated the model."""
    # a search writes RUN/recipe.json beside RUN/model
    places = [directory, *([directory.parent] if directory.name == "model" else [])]
    found = (place / name for name in MADE_HERE for place in places)
    return [path for path in found if path.is_file()]


def holds_weights(path: Path, kind: str = "") -> bool:
    """Whether the weights of the model, or of the adapter, that `path` describes are there.

    Args:
        kind: what the name of the file, or of the index, that is loaded must contain.
    """
    whole = (path / "config.json").is_file()
    file = _first(path, (*_named(path), *_WHOLE) if whole else _ADAPTER)
    return file is not None and kind in file.name


def models_inside(directory: Path) -> str:
    """Returns a hint that names models or adapters in folders below; empty: there are none."""
    below = chain(directory.glob("*"), directory.glob("*/*"))
    described = ("config.json", "adapter_config.json")
    found = [
        folder
        for folder in sorted(below, key=_by_number)
        if any((folder / file).is_file() for file in described) and holds_weights(folder)
    ]
    return f"; name the folder {' or '.join(map(str, found[-3:]))}" if found else ""


def _by_number(path: Path) -> list[str | int]:
    """Orders checkpoint-900 before checkpoint-1000."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _first(directory: Path, names: Iterable[str]) -> Path | None:
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _named(directory: Path) -> tuple[str, ...]:
    """Returns the file that config.json names as transformers' ``transformers_weights``."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        name = config.get("transformers_weights")
    except (OSError, ValueError, AttributeError):  # `read_config` says what is wrong with it
        return ()
    return (Path(str(name)).name,) if name else ()


def _none_found(directory: Path, adapter: bool) -> str:
    names = _ADAPTER if adapter else _named(directory) or _WHOLE
    odd = [path for path in sorted(directory.glob("*.safetensors")) if path.name not in _ADAPTER]
    if odd:
        return f"{odd[0]} is not named as transformers expects; rename it to {names[0]}"
    expected = f"{', '.join(names[:-1])} or {names[-1]}" if names[1:] else names[0]
    return f"{directory} holds no weights; expected {expected}{models_inside(directory)}"


def _read_index(index: Path) -> dict[str, str]:
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in listed.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{index} is corrupt: no weight_map ({error!r}); download the checkpoint again"
        ) from error


def _shards(index: Path, listed: Mapping[str, str]) -> tuple[Path, ...]:
    shards = tuple(index.parent / name for name in sorted(set(listed.values())))
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(
                f"{shard} is missing, but {index.name} names it; download the checkpoint again"
            )
    return shards
