"""The stored model that another one is stored as difference to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from merging.zoo import codec, index
from merging.zoo.blocks import Bytes
from merging.zoo.errors import ZooError
from merging.zoo.layout import Chunk, Entry, item_bytes
from merging.zoo.weights import ZooFile

_SAMPLES = 8
_SAMPLED = 2**16
"""Blocks and bytes of each by which relatives are compared."""

_WORTH = 0.97
"""Share of what the samples take alone that differences must come below."""


@dataclass(frozen=True, eq=False)
class Relative:
    """What a file's chunks may be differences to: another model's tensors.

    Args:
        name: the other model's.
        tensors: of the file that is added -> where its counterpart lies.
    """

    name: str
    tensors: Mapping[str, tuple[ZooFile, Entry]]

    @classmethod
    def of(
        cls, files: Sequence[ZooFile], name: str, own: Mapping[str, Entry], model: str = ""
    ) -> Relative:
        """Returns the relative of the file `name`, in the files of a stored model.

        Args:
            own: tensors of the file.
        """
        folder = PurePosixPath(name).parent
        near = [file for file in files if PurePosixPath(file.name).parent == folder]
        theirs = {tensor: (file, file.entries[tensor]) for file in near for tensor in file.entries}
        return cls(model, counterparts(own, theirs))

    def base(self, chunk: Chunk) -> index.Row | None:
        """Returns the block that a chunk may be a difference to.

        It is never a difference itself: where the relative's block is one, it is that one's base.
        """
        file, entry = self.tensors.get(chunk.tensor, (None, None))
        if file is None or entry is None or chunk.offset >= entry.end - entry.begin:
            return None
        at = entry.begin + chunk.offset
        i = int(np.searchsorted(file.ends, at, side="right"))
        piece = file.pieces[i]
        row = file.rows[int(piece["block"])]
        begins = at == int(file.ends[i]) - int(piece["length"])
        if not begins or piece["start"] or row.size != chunk.size:
            return None
        return row if row.base is None else file.rows[row.base]

    def raw(self, row: index.Row) -> Bytes:
        """Returns the raw bytes of a block that `base` gave."""
        file, _ = next(iter(self.tensors.values()))
        return file.blocks.raw(row.id, {row.id: row})


def counterparts(
    own: Mapping[str, Entry], theirs: Mapping[str, tuple[ZooFile, Entry]]
) -> dict[str, tuple[ZooFile, Entry]]:
    """Returns the tensors of another model by one's own names for them; dtypes are the same.

    An encoder's ``layer.0`` is ``bert.layer.0`` where it has a head: of one of the two names the
    first part may be left out, whichever way gives more bytes.
    """

    def shorter(name: str) -> str:
        return name.partition(".")[2]

    short = {shorter(name): found for name, found in theirs.items()}
    ways = [
        {name: theirs.get(name) for name in own},
        {name: theirs.get(shorter(name)) for name in own},
        {name: short.get(name) for name in own},
    ]
    fitting = [
        {n: f for n, f in way.items() if f is not None and f[1].dtype == own[n].dtype}
        for way in ways
    ]
    return max(fitting, key=lambda way: sum(own[n].end - own[n].begin for n in way))


def signature(tensors: Mapping[str, Entry]) -> bytes:
    """Returns what models of the same names, dtypes and shapes have in common."""
    described = sorted((name, entry.dtype, entry.shape) for name, entry in tensors.items())
    return hashlib.sha256(json.dumps(described).encode()).digest()


def nearest(
    candidates: Sequence[Relative], chunks: Sequence[Chunk], read: Callable[[Chunk], Bytes]
) -> Relative | None:
    """Returns the relative that samples of a file are smallest as differences to; None: alone.

    Args:
        read: returns a chunk's bytes.
    """
    large = [chunk for chunk in chunks if chunk.dtype]
    large.sort(key=lambda chunk: -chunk.size)
    chosen = large[: len(large) // 2 + 1][:: max(1, len(large) // 2 // _SAMPLES)]
    alone, sizes = 0, [0.0] * len(candidates)
    for chunk in chosen if candidates else ():
        raw = read(chunk)
        part = slice(0, _SAMPLED)
        whole = len(codec.encode(raw[part], item_bytes(chunk.dtype))[1])
        alone += whole
        for i, candidate in enumerate(candidates):
            row = candidate.base(chunk)
            if row is None:
                sizes[i] += whole
                continue
            try:
                near = candidate.raw(row)[part]
            except ZooError:  # it is damaged: another will do, or none
                sizes[i] = math.inf
                continue
            sizes[i] += len(codec.encode(raw[part], item_bytes(chunk.dtype), near)[1])
    best = min(range(len(candidates)), key=sizes.__getitem__, default=None)
    return candidates[best] if best is not None and sizes[best] < _WORTH * alone else None
