"""Weight files of one directory: which they are, whether they are whole, and reading by tensor."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merging.weight_names import find_weights
from merging.weights import CheckpointError, LazyWeights
from merging.zoo.layout import DTYPES
from merging.zoo.pointers import follow
from merging.zoo.weights import ZooFile

# What a checkpoint in full precision is made of: no float8, no integers that hold several numbers.
_DTYPES = {
    name: DTYPES[name]
    for name in ["F64", "F32", "F16", "BF16", "C64", "I64", "I32", "I16", "I8", "U8", "BOOL"]
}


@dataclass(frozen=True)
class _Entry:
    file: Path  # of pickles the first
    shape: torch.Size
    dtype: torch.dtype


class WeightFiles(LazyWeights):
    """Tensors by the names of the files; shapes and dtypes are known, data is read on access.

    `files` are the safetensors or pickle files in the order of their names; `weights` are the
    tensors of pickles, memory-mapped. What a pointer stands for is read from its zoo.
    """

    def __init__(self, files: tuple[Path, ...], weights: Mapping[str, Tensor] | None = None):
        self.files = files
        self.pickled = weights
        self._entries: dict[str, _Entry] = {}
        self._handles: dict[Path, Any] = {}
        self._stamps: dict[Path, tuple[int, ...]] = {}  # packs of a zoo are never written again
        for file in files if weights is None else ():
            if (pointer := follow(file)) is None:
                self._stamps[file] = _stamp(file)
                self._entries.update(_read_header(file))
            else:
                stored = self._handles[file] = ZooFile.of(pointer)
                self._entries.update(_parsed(file, stored.header, stored.size))
        if weights is not None:
            self._stamps = {file: _stamp(file) for file in files}
        for name, tensor in (weights or {}).items():
            self._entries[name] = _Entry(files[0], tensor.shape, tensor.dtype)
        for name, entry in self._entries.items():
            packed = name.endswith("weight") and not entry.dtype.is_floating_point
            if packed or entry.dtype not in _DTYPES.values():
                raise _quantised(entry.file, name, str(entry.dtype))
        super().__init__(self._entries)

    @property
    def in_zoo(self) -> bool:
        """Whether its files stand in a zoo, so that every read decodes."""
        return isinstance(self._handles.get(self.files[0]), ZooFile)

    @property
    def known_finite(self) -> bool:
        """Whether a zoo saw, when they were added, that no value is NaN or infinite."""
        return self.in_zoo and all(self._handles[file].finite for file in self.files)

    @classmethod
    def find(cls, directory: Path, *, adapter: bool = False) -> WeightFiles:
        """Returns the weights of `directory`, or of the adapter there; reads headers only.

        Of several sets it is the one that transformers, or peft, loads; what else lies there is
        left alone.

        Raises:
            CheckpointError: no weights, a missing shard, a truncated or corrupt file, a pickle
                that needs more than ``weights_only``, or numbers of too few bits to merge.
        """
        files, listed = find_weights(directory, adapter=adapter)
        return cls._open(files)._holding(directory, listed)

    @classmethod
    def _open(cls, files: tuple[Path, ...]) -> WeightFiles:
        pickled = files[0].suffix != ".safetensors"
        return cls(files, _unpickle_all(files) if pickled else None)

    def _holding(self, directory: Path, listed: Mapping[str, str]) -> WeightFiles:
        for name, file in listed.items():
            if name not in self:
                raise CheckpointError(
                    f"the index in {directory} places tensor {name} in {file}, which does not "
                    "hold it; download the checkpoint again"
                )
        return self

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading the tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype without reading the tensor."""
        return self._entries[name].dtype

    def file(self, name: str) -> Path:
        """Returns the safetensors file that holds a tensor."""
        return self._entries[name].file

    def _tensor(self, name: str) -> Tensor:
        entry = self._entries[name]
        if self.pickled is not None:
            self._check_unchanged(self.files)
            return self.pickled[name]
        if entry.file not in self._handles:
            self._handles[entry.file] = safe_open(str(entry.file), framework="pt")
        self._check_unchanged([entry.file])
        tensor: Tensor = self._handles[entry.file].get_tensor(name)
        return tensor

    def _check_unchanged(self, files: Sequence[Path]) -> None:
        """Raises CheckpointError where a file is another than its header was read from."""
        for file in files:
            if file in self._stamps and _stamp(file) != self._stamps[file]:
                raise CheckpointError(
                    f"{file} changed while it was in use; put the earlier file back, or start "
                    "again with this one"
                )


def _stamp(file: Path) -> tuple[int, ...]:
    """Returns what tells that a file was replaced or written to."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _quantised(file: Path, name: str, dtype: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: {name} is stored as {dtype}, so it seems quantised; "
        "use the checkpoint in full precision"
    )


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
        raw = start + stream.read(length)
    entries = _parsed(file, raw, size)
    try:  # the library's own checks (overlaps, dtype against length), still without data
        with safe_open(str(file), framework="pt"):
            return entries
    except SafetensorError as error:
        raise CheckpointError(f"{file} is corrupt ({error}); download or copy it again") from error


def _parsed(file: Path, raw: bytes, size: int) -> dict[str, _Entry]:
    try:
        header = json.loads(raw[8:])
        header.pop("__metadata__", None)
        promised = len(raw) + max((e["data_offsets"][1] for e in header.values()), default=0)
        shapes = {name: torch.Size(entry["shape"]) for name, entry in header.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{file} has a corrupt header ({error!r}); download or copy it again"
        ) from error
    if promised != size:
        raise CheckpointError(
            f"{file} is truncated or corrupt: its header promises {promised} bytes, not {size}; "
            "download or copy it again"
        )
    packed = next((name for name, dtype in dtypes.items() if dtype not in _DTYPES), None)
    if packed is not None:
        raise _quantised(file, packed, dtypes[packed])
    return {name: _Entry(file, shape, _DTYPES[dtypes[name]]) for name, shape in shapes.items()}


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
