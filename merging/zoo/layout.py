"""How files are cut into blocks, and what of a file is which tensor."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merging.finite import finite
from merging.zoo.errors import ZooError

BLOCK = 4 * 2**20
"""Most bytes of a block: 4 MiB."""

_SMALL = 64 * 2**10
"""Tensors of fewer bytes share blocks: a row each would cost more than what is saved."""

_SHARED = 2**20
"""Most bytes of a block that small tensors share: reading one of them decodes them all."""

PIECES = np.dtype([("block", "<i8"), ("start", "<u4"), ("length", "<u4")])
"""Pieces of blocks, one after the other: a whole file, or one tensor of it."""

Pieces = NDArray[np.void]

_ITEM_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "C64": 4,
    "I32": 4,
    "U32": 4,
} | dict.fromkeys(("F16", "BF16", "I16", "U16"), 2)

DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' dtypes that torch has too, in the order in which it lays tensors out."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file; `begin` and `end`: its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Chunk:
    """What becomes one block.

    Args:
        ranges: of bytes of the file, one after the other.
        dtype: of the tensors that they belong to; empty: they are no tensor's.
        tensor: the one that the first of them belongs to.
        offset: of the first byte in that tensor.
    """

    ranges: tuple[tuple[int, int], ...]
    dtype: str = ""
    tensor: str = ""
    offset: int = 0

    @property
    def size(self) -> int:
        """How many bytes the block has."""
        return sum(end - begin for begin, end in self.ranges)


def header_bytes(start: bytes) -> int:
    """Returns where the tensors of a safetensors file begin, from its first eight bytes."""
    return 8 + struct.unpack("<Q", start)[0] if len(start) == 8 else 2**63


def entries(header: bytes) -> dict[str, Entry]:
    """Returns the tensors that a header (with the eight bytes before it) describes, in order.

    Raises:
        ZooError: it is no header.
    """
    try:
        content: dict[str, Any] = json.loads(header[8:])
        content.pop("__metadata__", None)
        found = {
            name: Entry(
                str(value["dtype"]),
                tuple(value["shape"]),
                *(len(header) + int(offset) for offset in value["data_offsets"]),
            )
            for name, value in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"corrupt header ({error!r})") from error
    return dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))


def item_bytes(dtype: str) -> int:
    """Returns the bytes of an item of which differences are taken; single ones where none are."""
    return _ITEM_BYTES.get(dtype, 1)


def all_finite(raw: NDArray[np.uint8], dtype: str) -> bool:
    """Whether no value is NaN or infinite, where torch has the dtype; `raw`: whole values."""
    return dtype not in DTYPES or finite(torch.from_numpy(raw).view(DTYPES[dtype]))


def chunks(
    size: int, header: int = 0, tensors: Mapping[str, Entry] | None = None
) -> Iterator[Chunk]:
    """Yields how a file of `size` bytes is cut; every byte is in one chunk.

    Args:
        header: where the tensors begin; 0: the file has none.
        tensors: in the order of their bytes.
    """
    yield from _cut(0, header or size)
    small: dict[str, list[tuple[str, Entry]]] = {}
    sizes: dict[str, int] = {}
    at = header or size
    for name, entry in (tensors or {}).items():
        yield from _cut(at, entry.begin)
        at = max(at, entry.end)
        if entry.end - entry.begin >= _SMALL:
            yield from _cut(entry.begin, entry.end, entry.dtype, name)
        elif entry.end > entry.begin:
            small.setdefault(entry.dtype, []).append((name, entry))
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.begin
            if sizes[entry.dtype] > _SHARED - _SMALL:
                del sizes[entry.dtype]
                yield _together(small.pop(entry.dtype))
    yield from _cut(at, size)
    yield from map(_together, small.values())


def _cut(begin: int, end: int, dtype: str = "", name: str = "") -> Iterator[Chunk]:
    for at in range(begin, end, BLOCK):
        yield Chunk(((at, min(at + BLOCK, end)),), dtype, name, at - begin)


def _together(waiting: list[tuple[str, Entry]]) -> Chunk:
    ranges: list[tuple[int, int]] = []
    for _, entry in waiting:
        if ranges and ranges[-1][1] == entry.begin:
            ranges[-1] = (ranges[-1][0], entry.end)
        else:
            ranges.append((entry.begin, entry.end))
    return Chunk(tuple(ranges), waiting[0][1].dtype, waiting[0][0])


def assemble(placed: Iterable[tuple[Chunk, int]]) -> Pieces:
    """Returns a file's pieces, in its order, from its chunks and the blocks that they became."""
    parts: list[tuple[int, int, int, int]] = []
    for chunk, block in placed:
        start = 0
        for begin, end in chunk.ranges:
            parts.append((begin, block, start, end - begin))
            start += end - begin
    return np.array([part[1:] for part in sorted(parts)], PIECES)


def ends_of(pieces: Pieces) -> NDArray[np.int64]:
    """Returns where each piece ends in the bytes that all make together."""
    return np.cumsum(pieces["length"], dtype=np.int64)


def cut(pieces: Pieces, ends: NDArray[np.int64], begin: int, end: int) -> Pieces:
    """Returns the pieces of some of the bytes that `pieces` make together; `ends`: theirs."""
    if begin >= end:
        return pieces[:0]
    first, last = np.searchsorted(ends, [begin, end - 1], side="right")
    found = pieces[first : last + 1].copy()
    before = begin - (int(ends[first]) - int(found["length"][0]))
    found["start"][0] += before
    found["length"][0] -= before
    found["length"][-1] -= int(ends[last]) - end
    return found


def batches(pieces: Pieces, most: int = 4 * BLOCK) -> Iterator[Pieces]:
    """Yields pieces, a few at a time: of at most `most` bytes, or one."""
    groups = ends_of(pieces) // most
    yield from np.split(pieces, np.flatnonzero(np.diff(groups)) + 1) if len(pieces) else ()
