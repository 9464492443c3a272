"""A stored model's tensors, decoded when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.weights import LazyWeights
from merging.zoo import index, layout
from merging.zoo.blocks import Blocks, blocks_of, empty
from merging.zoo.errors import ZooError
from merging.zoo.layout import DTYPES, Entry, Pieces
from merging.zoo.pointers import Pointer


@dataclass(frozen=True, eq=False)
class ZooFile:
    """One file of a model.

    Attributes:
        header: its first bytes, up to the tensors; empty: it holds none.
        entries: its tensors, in the order of their bytes.
        pieces: of the whole file.
        finite: whether no value is NaN or infinite, which was seen when it was added.
    """

    name: str
    sha256: str
    size: int
    header: bytes
    entries: Mapping[str, Entry]
    pieces: Pieces
    finite: bool
    rows: Mapping[int, index.Row]
    blocks: Blocks

    @classmethod
    def open(cls, directory: Path, model: int, name: str | None = None) -> list[ZooFile]:
        """Returns the files of a model, or the one that is named; reads headers only."""
        where = "model = ? AND name = coalesce(?, name)"
        with index.reading(directory) as connection:
            found = connection.execute(
                f"SELECT name, sha256, bytes, header, pieces, finite FROM files WHERE {where} "
                "ORDER BY name",
                (model, name),
            ).fetchall()
            pieces = [np.frombuffer(row[4], layout.PIECES) for row in found]
            used = np.unique(
                np.concatenate([np.zeros(0, np.int64), *(p["block"] for p in pieces)])
            )
            rows = index.rows(connection, used.astype(int).tolist())
        if not found:
            raise ZooError(f"the zoo {directory} no longer holds what is read; add it again")
        blocks = blocks_of(directory)
        return [
            _file(blocks, rows, name, sha256, size, header, own, bool(finite))
            for (name, sha256, size, header, _, finite), own in zip(found, pieces, strict=True)
        ]

    @classmethod
    def of(cls, pointer: Pointer) -> ZooFile:
        """Returns the file that a pointer stands for.

        Raises:
            ZooError: it is not in the zoo any more, or the zoo is another one.
        """
        file = cls.open(pointer.zoo, pointer.model, pointer.name)[0]
        if file.sha256 != pointer.sha256:
            raise ZooError(
                f"the zoo {pointer.zoo} holds another {pointer.name} than its view says; remove "
                "the directory below views, which is made again"
            )
        return file

    def of_tensor(self, name: str) -> Pieces:
        """Returns where a tensor's bytes lie."""
        entry = self.entries[name]
        return self.cut(entry.begin, entry.end)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where in the file each piece ends."""
        return layout.ends_of(self.pieces)

    def cut(self, begin: int, end: int) -> Pieces:
        """Returns where some of its bytes lie."""
        return layout.cut(self.pieces, self.ends, begin, end)

    def raw(self) -> bytes:
        """Returns all of its bytes."""
        out = np.empty(self.size, np.uint8)
        self.fill(self.pieces, out)
        return out.tobytes()

    def write(self, folder: Path) -> None:
        """Writes it, byte for byte, under its name below `folder`; an empty folder as such.

        Raises:
            ZooError: as `Blocks.fill`, or the whole is not the file that was added.
        """
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.name.endswith("/"):
            path.mkdir()
            return
        digest = sha256()
        with path.open("xb") as file:
            for part in layout.batches(self.pieces):
                out = np.empty(int(part["length"].sum()), np.uint8)
                self.fill(part, out)
                digest.update(out.data)
                file.write(out.data)
        if digest.hexdigest() != self.sha256:
            raise ZooError(
                f"{self.blocks.directory} does not hold {self.name} as it was added, though each "
                "of its blocks is sound; bring the zoo back from a copy, or add the model again"
            )

    def fill(self, pieces: Pieces, out: np.ndarray) -> None:
        """Writes some of its bytes into `out`, uint8; raises as `Blocks.fill`."""
        self.blocks.fill(pieces, self.rows, out)

    def get_tensor(self, name: str) -> Tensor:
        """Returns a tensor, in memory of its own; raises as `Blocks.fill`."""
        entry = self.entries[name]
        out = empty(entry.end - entry.begin)
        self.fill(self.of_tensor(name), out)
        return torch.from_numpy(out).view(_dtype(name, entry)).view(entry.shape)


def _file(
    blocks: Blocks,
    rows: Mapping[int, index.Row],
    name: str,
    sha256: str,
    size: int,
    header: int,
    pieces: Pieces,
    finite: bool,
) -> ZooFile:
    raw = np.empty(header, np.uint8)
    blocks.fill(layout.cut(pieces, layout.ends_of(pieces), 0, header), rows, raw)
    content = raw.tobytes()
    entries = layout.entries(content) if header else {}
    return ZooFile(name, sha256, size, content, entries, pieces, finite, rows, blocks)


class ZooWeights(LazyWeights):
    """All tensors of a model's weight files by their names in the files.

    Shapes and dtypes are known without reading; a read decodes the tensor's own pieces, and the
    blocks that they are differences to.
    """

    def __init__(self, files: list[ZooFile]) -> None:
        self._files = {name: file for file in files for name in file.entries}
        super().__init__(self._files)

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading the tensor."""
        return torch.Size(self._files[name].entries[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype; raises ZooError where torch has none of the kind."""
        return _dtype(name, self._files[name].entries[name])

    def pieces(self, name: str) -> Pieces:
        """Returns where a tensor's bytes lie."""
        return self._files[name].of_tensor(name)

    def write(self, name: str, out: Tensor) -> None:
        """Writes a tensor into `out`, ``(*shape)``; decoded where it lies if that can be."""
        alike = out.dtype == self.dtype(name) and out.device.type == "cpu"
        if alike and out.is_contiguous() and out.numel():
            file = self._files[name]
            raw = out.detach().reshape(-1).view(torch.uint8)
            file.fill(file.of_tensor(name), raw.numpy())
        else:
            out.copy_(self[name])

    def _tensor(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)


def _dtype(name: str, entry: Entry) -> torch.dtype:
    if entry.dtype not in DTYPES:
        raise ZooError(
            f"tensor {name} is stored as {entry.dtype}, which torch does not have; `evomerge "
            "zoo open` the model, and read its files with what wrote them"
        )
    return DTYPES[entry.dtype]
