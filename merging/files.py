"""Files that are either the old ones or the new ones, never halves, and readable as others are."""

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

_DAY_NS = 86_400 * 10**9


def cache_dir() -> Path:
    """Returns where to keep what can be computed again: $EVOMERGE_CACHE or ~/.cache/evomerge."""
    return Path(os.environ.get("EVOMERGE_CACHE") or Path.home() / ".cache" / "evomerge")


def joint_sha256(digests: Mapping[str, str]) -> str:
    """Returns the identity of files by the sha256 of each.

    One file: its sha256, as ``sha256sum`` prints it. Several: the sha256 of the lines that
    ``sha256sum`` prints for them in the order of their names.
    """
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(listing.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes `path` in one piece: under a temporary name beside it, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def made_whole(folder: Path, make: Callable[[Path], object]) -> Path:
    """Returns a directory of the cache, which `make` fills, under another name, where it lacks.

    Of two processes that make it at once one is taken: it has to follow from its name.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        make(draft)
        apply_umask(draft)
        os.replace(draft, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def apply_umask(path: Path) -> None:
    """Gives a file, or a directory with all below it but links, the mode that the umask asks for.

    Temporary files, and with them what safetensors writes, are their owner's alone.
    """
    mask = os.umask(0o077)
    os.umask(mask)
    for each in (path, *path.rglob("*")):
        if each.is_symlink():
            continue  # its target is somebody else's
        each.chmod((0o777 if each.is_dir() else 0o666) & ~mask)


def date_alike(paths: Iterable[Path]) -> None:
    """Dates all files alike, to some moment of the day before.

    How long private work took tells of its items, and when it ended tells that, beside when the
    work before it ended. The moment is drawn, as caches know files by their dates.
    """
    moment_ns = time.time_ns() // _DAY_NS * _DAY_NS - secrets.randbelow(_DAY_NS)
    for path in paths:
        os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)
