"""The secret key of a private run: drawn once, never released, destroyed at the end."""

import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from experiments.runs.errors import UserError
from merging.files import date_alike
from merging.recipe import Recipe
from search.privacy.private_noise import SecretNoise

KEY_FILE = "secret.key"
_BYTES = 32


def open_noise(run: Path, belongs: Sequence[str], *, begun: bool) -> SecretNoise:
    """Returns the run's secret noise; the key is drawn at the first start.

    Args:
        run: the run's directory.
        belongs: what the noise is for (configuration, models, items): noise for anything else
            has another key, so that two answers can never be subtracted.
        begun: whether something was released already.

    Raises:
        UserError: the key is gone, or the file is damaged.
    """
    path = run / KEY_FILE
    if not path.exists():
        if begun:
            raise UserError(
                f"{path} is missing, so the noise of the steps in {run} cannot be drawn again: "
                "put it back, or start in an empty directory"
            )
        _write(path, secrets.token_bytes(_BYTES).hex())
    return _noise(_key(path), belongs)


def release_of(run: Path) -> str | None:
    """Returns the identity of what a run releases: it names the key without telling it.

    A finished run has none any more, but a recipe whose ledger ends with it. None: there is no
    key yet.
    """
    path, recipe = run / KEY_FILE, run / "recipe.json"
    if path.exists():
        return f"search {hashlib.blake2b(b'release', key=_key(path), digest_size=8).hexdigest()}"
    ledger = Recipe.load(recipe).privacy if recipe.exists() else None
    return ledger["spends"][-1]["release"] if ledger and ledger["spends"] else None


def release_by_seed(identity: str) -> str:
    """Returns the identity of what a run releases whose noise follows from its seed."""
    return f"search {identity} by its seed"


def seeded_noise(seed: int, belongs: Sequence[str]) -> SecretNoise:
    """Returns noise that the seed gives away: for tests, and private to nobody who knows it."""
    return _noise(hashlib.sha256(f"public seed {seed}".encode()).digest(), belongs)


def destroy(run: Path) -> None:
    """Removes what must not be released with a finished run: the key, and the files' times.

    How long a search took tells of its items; see `date_alike`.
    """
    for name in (KEY_FILE, "timing.jsonl"):  # the second is an older version's
        (run / name).unlink(missing_ok=True)
    date_alike([*run.rglob("*"), run])


def _key(path: Path) -> bytes:
    try:
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it") from error


def _noise(key: bytes, belongs: Sequence[str]) -> SecretNoise:
    text = repr(tuple(belongs)).encode()
    return SecretNoise(hashlib.blake2b(text, key=key, digest_size=_BYTES).digest())


def _write(path: Path, text: str) -> None:
    """Writes a file that its owner alone can read, in one piece, on disk when this returns."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
