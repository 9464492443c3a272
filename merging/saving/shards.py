"""Weight files of a merged model: under the names and in the dtypes of the base's own files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.hashing import know_sha256
from merging.checkpoints.weight_files import WeightFiles
from merging.stacks.depth import Restacked
from merging.weights import CheckpointError, LazyWeights, Weights
from merging.zoo.layout import DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_weights(
    like: Checkpoint | Restacked, weights: TypedWeights, directory: Path, limit: int
) -> None:
    """Writes safetensors files of at most `limit` bytes, and their index where there are several.

    `weights`: of the kind of `like`, whose names and files they have.
    """
    if like.file_names is None:
        _write_converted(like, weights, directory, limit)
    else:
        _write_shards(weights, like.file_names, directory, limit)


class MergedWeights(LazyWeights):
    """A checkpoint with merged tensors in place of its own; `prefix` leads to where they sit."""

    def __init__(self, own: Checkpoint | Restacked, merged: Weights, prefix: str) -> None:
        super().__init__(own)
        self._own, self._merged = own, merged
        self._merged_names = {prefix + name: name for name in merged}

    def _tensor(self, name: str) -> Tensor:
        if name not in self._merged_names:
            return self._own[name]
        tensor = self._merged[self._merged_names[name]]
        if tensor.shape != self._own.shape(name):
            raise CheckpointError(
                f"merged tensor {name} has shape {tuple(tensor.shape)}, "
                f"{self._own.source} has {tuple(self._own.shape(name))}"
            )
        return tensor


class TypedWeights(LazyWeights):
    """Tensors as they will lie in the file: dtype settled, on the CPU, contiguous.

    Those that the class does not use come last, under their names in the file, as they are.
    """

    def __init__(
        self, like: Checkpoint | Restacked, weights: Weights, dtype: torch.dtype | None
    ) -> None:
        super().__init__([*weights, *like.unused])
        self._like, self._weights, self._dtype = like, weights, dtype

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype in the file."""
        if name in self._like.unused:
            return self._like.stored.dtype(name)
        stored = self._like.dtype(name)
        return self._dtype if self._dtype is not None and stored.is_floating_point else stored

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without computing it."""
        own = self._like.stored if name in self._like.unused else self._like
        return own.shape(name)

    def nbytes(self, name: str) -> int:
        """Returns how many bytes a tensor takes in the file."""
        return self.shape(name).numel() * self.dtype(name).itemsize

    def main_dtype(self) -> torch.dtype:
        """Returns the float dtype that most values have, which the configuration names."""
        counts: dict[torch.dtype, int] = {}
        for name in self._weights:
            if self.dtype(name).is_floating_point:
                counts[self.dtype(name)] = counts.get(self.dtype(name), 0) + self.nbytes(name)
        return max(counts, key=lambda dtype: (counts[dtype], str(dtype)))

    def _tensor(self, name: str) -> Tensor:
        source = self._like.stored if name in self._like.unused else self._weights
        return source[name].detach().to(device="cpu", dtype=self.dtype(name)).contiguous()


def _write_converted(
    like: Checkpoint | Restacked, tensors: TypedWeights, directory: Path, limit: int
) -> None:
    """Lets transformers convert and write; of its files only the weights are taken."""
    module = like.module(dtype=tensors.main_dtype(), device=torch.device("cpu"))
    state = module.state_dict()
    for name in like:
        state[name].copy_(tensors[name])
    draft = directory / "converted"
    module.save_pretrained(draft, max_shard_size=limit)  # type: ignore[operator]
    written = WeightFiles.find(draft)
    carried = {name: tensors[name] for name in like.unused}
    count = len(written.files) + bool(carried)
    names = {file: _shard_name(i, count) for i, file in enumerate(written.files)}
    index = {name: names[written.file(name)] for name in written}
    for file, name in names.items():
        os.replace(file, directory / name)
    shutil.rmtree(draft)
    if carried:
        name = _shard_name(count - 1, count)
        save_file(carried, directory / name, metadata={"format": "pt"})
        index |= dict.fromkeys(carried, name)
    _write_index(index, sum(map(tensors.nbytes, tensors)), directory)


def _write_shards(
    weights: TypedWeights, names: Mapping[str, str], directory: Path, limit: int
) -> None:
    """Writes tensors under the names of the base's own files; holds two at a time."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in weights:
        if shards[-1] and size + weights.nbytes(name) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weights.nbytes(name)
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = _shard_name(i, len(shards))
        stored = {names.get(name, name): name for name in shard}
        _write_shard(weights, stored, directory / file)
        index.update(dict.fromkeys(stored, file))
    _write_index(index, sum(map(weights.nbytes, weights)), directory)


def _write_shard(weights: TypedWeights, names: Mapping[str, str], path: Path) -> None:
    """Writes a safetensors file, byte for byte as `save_file` does, which needs all tensors.

    Eight bytes with the header's length, the header as JSON, spaces up to a multiple of eight,
    then the tensors: the widest dtype first, of one dtype by name. While one is written and
    hashed, the next is computed.

    Args:
        names: name in the file -> name in `weights`.
    """
    dtypes = {name: _DTYPE_NAMES[weights.dtype(own)] for name, own in names.items()}
    rank = {dtype: i for i, dtype in enumerate(DTYPES)}
    ordered = sorted(names, key=lambda name: (rank[dtypes[name]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in ordered:
        begin, end = end, end + weights.nbytes(names[name])
        shape = list(weights.shape(names[name]))
        header[name] = {"dtype": dtypes[name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file, ThreadPoolExecutor(1) as write, ThreadPoolExecutor(1) as read:

        def append(content: bytes | memoryview) -> list[Future[Any]]:
            return [write.submit(file.write, content), read.submit(digest.update, content)]

        begun = append(struct.pack("<Q", len(text)) + text)
        for name in ordered:
            content = weights[names[name]].view(-1).view(torch.uint8).numpy().data
            for before in begun:
                before.result()
            begun = append(content)
        for last in begun:
            last.result()
    know_sha256(path, digest.hexdigest())


def _shard_name(i: int, count: int) -> str:
    return f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _write_index(index: Mapping[str, str], total: int, directory: Path) -> None:
    """Writes which tensor lies in which shard, where there is more than one."""
    if len(set(index.values())) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
