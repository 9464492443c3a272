"""Directories that stand for stored models: small files, and pointers in place of the weights."""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from hashlib import sha256
from pathlib import Path

from merging.files import cache_dir
from merging.zoo.pointers import Pointer
from merging.zoo.weights import ZooFile

_MARKER = ".zoo.json"

_DAY_S = 86400


def place_of(zoo: Path, name: str) -> Path:
    """Returns where a model's view lies: in the zoo, or in the cache where the zoo only reads."""
    if os.access(zoo, os.W_OK):
        return zoo / "views" / name
    return cache_dir() / "zoo" / sha256(str(zoo).encode()).hexdigest()[:16] / name


def write(zoo: Path, model: int, files: Iterable[ZooFile], draft: Path) -> None:
    """Writes the files of a stored model into `draft`, pointers in the place of its weights."""
    there = Path("../..") if draft.parent.parent == zoo else zoo  # a zoo may be moved
    for file in files:
        if file.entries and "/" not in file.name:
            pointer = Pointer(there, model, file.name, file.sha256, file.size)
            pointer.write(draft / file.name)
        else:
            file.write(draft)


def is_view(place: Path, key: str) -> bool:
    """Whether the directory `place` is whole and was made for `key`."""
    try:
        content = json.loads((place / _MARKER).read_text(encoding="utf-8"))
        return bool(content["of"] == key) and content["files"].items() <= _sizes(place).items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def make(place: Path, key: str, fill: Callable[[Path], None]) -> Path:
    """Makes `place` a view, in one step, unless it is one already; returns it.

    Args:
        fill: writes the files into an empty directory.
    """
    if is_view(place, key):
        return place
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    draft.mkdir(parents=True)
    try:
        fill(draft)
        marker = json.dumps({"of": key, "files": _sizes(draft)})
        (draft / _MARKER).write_text(marker, encoding="utf-8")
        if not is_view(place, key):  # another process may have made it meanwhile
            discard(place)
            os.replace(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def discard(place: Path) -> None:
    """Removes a view, or what is left of one."""
    shutil.rmtree(place, ignore_errors=True)


def sweep(folder: Path, names: Collection[str]) -> None:
    """Removes the views of all models but `names`, and drafts that a kill left a day ago."""
    for place in folder.iterdir() if folder.is_dir() else ():
        draft = place.name.startswith(".")
        if place.name not in names and (not draft or time.time() - place.stat().st_mtime > _DAY_S):
            discard(place)


def _sizes(place: Path) -> dict[str, int]:
    return {
        str(file.relative_to(place)): file.stat().st_size
        for file in sorted(place.rglob("*"))
        if file.is_file() and file.name != _MARKER
    }
