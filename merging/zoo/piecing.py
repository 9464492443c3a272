"""A model that is made of pieces of others' blocks and of new bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from merging.files import joint_sha256
from merging.zoo import index, layout, relatives
from merging.zoo.adding import Addition, NewFile, NewModel
from merging.zoo.blocks import Bytes
from merging.zoo.errors import ZooError
from merging.zoo.keeping import ModelEntry
from merging.zoo.layout import PIECES, Entry, Pieces
from merging.zoo.weights import ZooFile


class Piece(NamedTuple):
    """Bytes of one stored block: a tensor is a list of them."""

    block: int
    start: int
    length: int


New = Mapping[str, Sequence[Piece | Bytes | bytes]]
"""Tensor -> where its bytes are stored, or themselves, one after the other."""

SideFiles = Mapping[str, bytes] | Callable[[str], Mapping[str, bytes]]
"""Files beside the weights; or what makes them of the weights' identity, as a privacy record."""


def of_pieces(
    addition: Addition, zoo: Path, like: ModelEntry, name: str, new: New, side_files: SideFiles
) -> tuple[NewModel, list[NewFile]]:
    """Stores new bytes and returns what is to be committed.

    Raises:
        ZooError: a tensor that `like` has not, or of another length; a piece of no stored block.
    """
    weights = [
        file for file in ZooFile.open(zoo, like.id) if file.entries and "/" not in file.name
    ]
    entries = {tensor: entry for file in weights for tensor, entry in file.entries.items()}
    for tensor in new:
        if tensor not in entries:
            raise ZooError(f"{like.name} has no tensor {tensor}; give pieces of its own tensors")
    files = [_file(addition, like, file, new) for file in weights]
    identity = joint_sha256({file.name: file.sha256 for file in files})
    given = side_files(identity) if callable(side_files) else side_files
    files += [addition.small_file(side, content) for side, content in given.items()]
    size = sum(file.size for file in files)
    signature = relatives.signature(entries)
    return NewModel(name, "stored", identity, size, like.name, signature), files


def _file(addition: Addition, like: ModelEntry, file: ZooFile, new: New) -> NewFile:
    parts, at = [], 0
    for tensor, entry in file.entries.items():
        if tensor in new:
            parts.append(file.cut(at, entry.begin))
            parts.append(_placed(addition, like, tensor, entry, new[tensor]))
            at = entry.end
    if not parts:
        return NewFile(
            file.name, file.sha256, file.size, len(file.header), file.pieces, file.finite
        )
    pieces = np.concatenate([*parts, file.cut(at, file.size)])
    digest, rows = sha256(), addition.rows(pieces["block"].tolist())
    for part in layout.batches(pieces):
        out = np.empty(int(part["length"].sum()), np.uint8)
        addition.blocks.fill(part, rows, out)
        digest.update(out.data)
    ends = layout.ends_of(pieces)
    sound = file.finite and all(
        _finite(addition, layout.cut(pieces, ends, entry.begin, entry.end), rows, entry)
        for tensor, entry in file.entries.items()
        if tensor in new
    )
    return NewFile(file.name, digest.hexdigest(), file.size, len(file.header), pieces, sound)


def _finite(
    addition: Addition, pieces: Pieces, rows: Mapping[int, index.Row], entry: Entry
) -> bool:
    out = np.empty(entry.end - entry.begin, np.uint8)
    addition.blocks.fill(pieces, rows, out)
    return layout.all_finite(out, entry.dtype)


def _placed(
    addition: Addition,
    like: ModelEntry,
    tensor: str,
    entry: Entry,
    given: Sequence[Piece | Bytes | bytes],
) -> Pieces:
    """Returns where a tensor's bytes lie after new ones were stored."""
    item_bytes = layout.item_bytes(entry.dtype)
    parts = [
        np.array([tuple(part)], PIECES)
        if isinstance(part, Piece)
        else addition.content(part, item_bytes)
        for part in given
    ]
    pieces: Pieces = np.concatenate([np.empty(0, PIECES), *parts])
    rows = addition.rows(pieces["block"].tolist())
    for block, start, length in pieces.tolist():
        if block not in rows or start + length > rows[block].size:
            raise ZooError(
                f"{tensor}: bytes {start} to {start + length} of block {block} are not stored; "
                "read pieces anew"
            )
    size = int(pieces["length"].sum(dtype=np.int64))
    if size != entry.end - entry.begin:
        raise ZooError(
            f"{tensor} has {entry.end - entry.begin} bytes in {like.name}, its pieces have "
            f"{size}; give pieces of a model of the same shapes"
        )
    return pieces
