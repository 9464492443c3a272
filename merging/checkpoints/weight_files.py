"""Weight files of one directory: which they are, whether they are whole, and reading by tensor."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merging.weights import CheckpointError, LazyWeights

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_NOT_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin"}


@dataclass(frozen=True)
class _Entry:
    file: Path
    shape: torch.Size
    dtype: torch.dtype


class WeightFiles(LazyWeights):
    """Tensors by the names of the files; shapes and dtypes are known, data is read on access.

    `files` are the safetensors or pickle files in the order of their names; `weights` are the
    tensors of pickles, memory-mapped.
    """

    def __init__(self, files: tuple[Path, ...], weights: Mapping[str, Tensor] | None = None):
        self.files = files
        self.pickled = weights
        self._entries: dict[str, _Entry] = {}
        self._handles: dict[Path, Any] = {}
        for file in files if weights is None else ():
            self._entries.update(_read_header(file))
        for name, tensor in (weights or {}).items():
            self._entries[name] = _Entry(files[0], tensor.shape, tensor.dtype)
        super().__init__(self._entries)

    @classmethod
    def find(cls, directory: Path, stem: str = "model") -> WeightFiles:
        """Returns the weights of `directory`; reads headers only.

        `stem` is ``model``, or ``adapter_model`` for an adapter.

        Raises:
            CheckpointError: no weights, a missing shard, a truncated or corrupt file, or a pickle
                that needs more than ``weights_only``.
        """
        index = directory / f"{stem}.safetensors.index.json"
        single = directory / f"{stem}.safetensors"
        if index.is_file():
            listed = _read_index(index)
            return cls(_shards(index, listed))._holding(index, listed)
        if single.is_file():
            return cls((single,))
        odd = sorted(directory.glob("*.safetensors"))
        if odd:
            raise CheckpointError(
                f"{odd[0]} is not named as transformers expects; rename it to {single.name}"
            )
        index = directory / "pytorch_model.bin.index.json"
        if index.is_file():
            files = _shards(index, _read_index(index))
            return cls(files, _unpickle_all(files))
        pickles = {path for pattern in _PICKLES for path in directory.glob(pattern)}
        files = tuple(sorted(path for path in pickles if path.name not in _NOT_WEIGHTS))
        if not files:
            raise CheckpointError(f"{directory} holds no weights; expected {single.name}")
        return cls(files, _unpickle_all(files))

    def _holding(self, index: Path, listed: Mapping[str, str]) -> WeightFiles:
        for name, file in listed.items():
            if name not in self:
                raise CheckpointError(
                    f"{index} places tensor {name} in {file}, which does not hold it; "
                    "download the checkpoint again"
                )
        return self

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading the tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype without reading the tensor."""
        return self._entries[name].dtype

    def _tensor(self, name: str) -> Tensor:
        entry = self._entries[name]
        if self.pickled is not None:
            return self.pickled[name]
        if entry.file not in self._handles:
            self._handles[entry.file] = safe_open(str(entry.file), framework="pt")
        tensor: Tensor = self._handles[entry.file].get_tensor(name)
        return tensor


def is_adapter(path: Path) -> bool:
    """Whether `path` is a PEFT adapter and not a full checkpoint."""
    full = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return (path / "adapter_config.json").is_file() and not any(
        (path / name).is_file() for name in full
    )


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


def _read_header(file: Path) -> dict[str, _Entry]:
    """Returns what a safetensors file holds, after comparing its length with what it promises."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":  # the first bytes of a Git LFS pointer
            raise CheckpointError(f"{file} is a Git LFS pointer, not weights; run git lfs pull")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise CheckpointError(
                f"{file} is truncated or no safetensors file: its {size} bytes hold no header; "
                "download or copy it again"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        promised = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
        entries = {
            name: _Entry(file, torch.Size(entry["shape"]), _DTYPES[entry["dtype"]])
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{file} has a corrupt header ({error!r}); download or copy it again"
        ) from error
    if promised != size:
        raise CheckpointError(
            f"{file} is truncated or corrupt: its header promises {promised} bytes, not {size}; "
            "download or copy it again"
        )
    try:  # the library's own checks (overlaps, dtype against length), still without data
        with safe_open(str(file), framework="pt"):
            return entries
    except SafetensorError as error:
        raise CheckpointError(f"{file} is corrupt ({error}); download or copy it again") from error


def _unpickle_all(files: tuple[Path, ...]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in files:
        loaded = _unpickle(file)
        flat = isinstance(loaded, dict) and all(isinstance(t, Tensor) for t in loaded.values())
        if not flat or not loaded:
            raise CheckpointError(
                f"{file} is no flat mapping of names to tensors; "
                "save the model with save_pretrained, which writes safetensors"
            )
        doubled = next((name for name in loaded if name in weights), None)
        if doubled is not None:
            raise CheckpointError(
                f"{file} repeats tensor {doubled} of another pickle file beside it; "
                "leave one checkpoint in the directory"
            )
        weights.update(loaded)
    return weights


def _unpickle(file: Path) -> Any:
    """Loads tensors and nothing else: a pickle that would run code is refused by torch."""
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{file} is a pickle that does not load with weights_only=True, so it may run code; "
            "convert the checkpoint to safetensors where you trust it"
        ) from error
