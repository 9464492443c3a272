"""Pack files: stored blocks, one after the other; never changed once the index names them."""

import os
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

MAGIC = b"evomerge pack 1\n"

FOLDER = "packs"


_LARGEST = 2**30
"""Bytes after which a writer begins another pack: 1 GiB."""

_OPEN = 64
"""Packs that a reader holds open."""


class PackWriter:
    """Writes new packs; what `close` has not returned is an orphan.

    Args:
        directory: of the zoo.
        number: of the first pack; names are for people, and never used again.
    """

    def __init__(self, directory: Path, number: int) -> None:
        self._directory, self._number = directory, number
        self._file: FileIO | None = None
        self.sizes: dict[str, int] = {}

    def append(self, payload: bytes | memoryview) -> tuple[str, int]:
        """Writes a stored block; returns the pack's name and where it lies there."""
        if self._file is None or self._file.tell() >= _LARGEST:
            self._begin()
        assert self._file is not None
        place = self._file.tell()
        view = payload if isinstance(payload, memoryview) else memoryview(payload)
        while view:
            view = view[self._file.write(view) or 0 :]
        name = next(reversed(self.sizes))
        self.sizes[name] = self._file.tell()
        return name, place

    def close(self) -> None:
        """Brings all to the disk; raises OSError."""
        self._end()
        if self.sizes:
            sync_folder(self._directory / FOLDER)

    def keep(self) -> int:
        """Says that the index names what was written; returns its bytes."""
        size = sum(self.sizes.values())
        self.sizes = {}
        return size

    def discard(self) -> None:
        """Removes what was written and not kept."""
        if self._file is not None:
            self._file.close()
        for name in self.sizes:
            (self._directory / FOLDER / name).unlink(missing_ok=True)

    def _begin(self) -> None:
        self._end()
        name = f"{self._number + len(self.sizes):06d}-{uuid.uuid4().hex[:8]}.pack"
        self.sizes[name] = 0
        self._file = open(self._directory / FOLDER / name, "xb", buffering=0)  # noqa: SIM115
        self._file.write(MAGIC)

    def _end(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class PackReader:
    """Reads stored blocks; what it holds open stays readable when the pack is removed."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER
        self._open: OrderedDict[str, FileIO] = OrderedDict()
        self._lock = Lock()

    def read_into(self, pack: str, place: int, out: NDArray[np.uint8]) -> int:
        """Fills `out` from a pack; returns how many bytes there were; raises OSError."""
        file, done = self._file(pack), 0
        view = out.data
        while done < len(view) and (got := os.preadv(file.fileno(), [view[done:]], place + done)):
            done += got
        return done

    def release(self, packs: Iterable[str]) -> None:
        """Lets go of packs that were removed, so that their space is free."""
        with self._lock:
            for pack in packs:
                self._open.pop(pack, None)

    def _file(self, pack: str) -> FileIO:
        with self._lock:
            if pack not in self._open:
                self._open[pack] = open(self._folder / pack, "rb", buffering=0)  # noqa: SIM115
            self._open.move_to_end(pack)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)  # closed when its last reader lets go
            return self._open[pack]


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
