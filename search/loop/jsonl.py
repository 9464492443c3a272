"""Append-only files of one JSON value per line that survive being killed at any moment."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class DamagedFileError(ValueError):
    """A file whose complete lines cannot be read; names file, line and remedy."""


def append(path: Path, value: Mapping[str, Any]) -> None:
    """Writes one line in one write and waits until it is on disk.

    The same value always gives the same bytes.

    Raises:
        OSError: the line could not be written in full (a full disk); nothing of it is left.
    """
    line = json.dumps(value, allow_nan=False, separators=(", ", ": ")).encode() + b"\n"
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                raise OSError(f"{path}: only {written} of {len(line)} bytes fit; free some space")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        _sync_directory(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, none where it does not exist, and repairs its end.

    A last line without a line feed was being written when the process died, and is cut off.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        truncate(path, len(complete))
    return [
        _parse(path, number, line) for number, line in enumerate(complete.splitlines(), start=1)
    ]


def keep_first(path: Path, lines: int) -> None:
    """Cuts everything after the first `lines` lines."""
    kept = path.read_bytes().splitlines(keepends=True)[:lines]
    truncate(path, sum(len(line) for line in kept))


def truncate(path: Path, size: int) -> None:
    """Cuts the file to `size` bytes and waits until that is on disk."""
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DamagedFileError(
            f"{path}, line {number} is not JSON ({error}); restore the file from a copy, or start "
            "in an empty directory"
        ) from error
    if not isinstance(value, dict) or type(value.get("id")) is not int:
        raise DamagedFileError(
            f"{path}, line {number} has no integer 'id'; it was not written by evomerge"
        )
    return value


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
