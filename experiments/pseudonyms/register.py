"""Which value a slug stands for in all files under one key, whoever writes them and when."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.pseudonyms.pseudonyms import SecretKey
from experiments.runs.state import appended, state_folder, whole_lines


@contextmanager
def register(secret: SecretKey) -> Iterator[Callable[[str, str], str]]:
    """Yields the `claim` of `Pseudonyms` for all files of this user; other processes wait.

    The register holds slugs and keyed digests, a line each, and no value. A slug is in it before
    it is in any other file.

    Raises:
        ValueError: the register is damaged.
    """
    path = state_folder() / f"slugs_{secret.digest('register')[:16]}.txt"
    with appended(path) as file:
        owners = _owners(path)

        def claim(slug: str, digest: str) -> str:
            if slug not in owners:
                file.write(f"{slug} {digest}\n")
            return owners.setdefault(slug, digest)

        yield claim


def _owners(path: Path) -> dict[str, str]:
    """Returns slug to digest; half a line at the end is cut off."""
    lines = whole_lines(path)
    os.truncate(path, sum(len(line) + 1 for line in lines))
    try:
        return dict(line.decode().split() for line in lines)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, which says what every slug stands for: restore it from a copy"
        ) from error
