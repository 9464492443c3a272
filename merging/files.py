"""Files that are either the old ones or the new ones, never halves, and readable as others are."""

import os
import time
from collections.abc import Iterable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes `path` in one piece: under a temporary name beside it, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def apply_umask(path: Path) -> None:
    """Gives a file, or a directory with all below it, the mode that the umask asks for.

    Temporary files, and with them what safetensors writes, are their owner's alone.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    for each in (path, *path.rglob("*")):
        each.chmod((0o777 if each.is_dir() else 0o666) & ~mask)


def date_alike(paths: Iterable[Path]) -> None:
    """Dates all files as of now: how long private work took tells of its items."""
    now_ns = time.time_ns()
    for path in paths:
        os.utime(path, ns=(now_ns, now_ns), follow_symlinks=False)
