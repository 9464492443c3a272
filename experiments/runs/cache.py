"""What is made once and kept in a cache: whole or not at all, by whichever process comes first."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from merging.files import apply_umask


def made_once(folder: Path, make: Callable[[Path], object], *, resume: bool = False) -> Path:
    """Returns `folder`, which `make` fills where it is missing; other processes wait for it.

    Args:
        folder: in the cache; ``folder.lock`` lies beside it.
        make: fills the draft that it is given, see `appearing`.
        resume: as for `appearing`.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                with appearing(folder, resume=resume) as draft:
                    make(draft)
    return folder


@contextmanager
def appearing(folder: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yields a draft beside `folder` that becomes it if nothing fails; the caller holds a lock.

    Args:
        folder: not there yet.
        resume: a draft that fails is kept, and is what the next call goes on with; else it is
            removed, and so is what a killed process left.
    """
    draft = folder.with_name(f".{folder.name}.unfinished")
    if not resume:
        shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        apply_umask(draft)
        os.replace(draft, folder)
    finally:
        if not resume:
            shutil.rmtree(draft, ignore_errors=True)


def digest_of(content: Any, code: Iterable[Path]) -> str:
    """Returns 16 hexadecimal digits that change with content, versions or code.

    Args:
        content: as JSON holds it; anything else counts as its text.
        code: source files whose change makes what is cached stale.
    """
    versions = {package: version(package) for package in ("torch", "transformers", "tokenizers")}
    text = json.dumps([content, versions, platform.python_version()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for file in code:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
