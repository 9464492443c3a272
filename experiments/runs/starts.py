"""Every private start on a data set: one line in one file, whatever became of the run.

Whoever keeps the best of several runs on the same records has spent all of them. The file is the
user's, so that it outlives output directories, and is no cache: nothing can compute it again.
"""

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.runs.errors import UserError
from experiments.runs.state import appended, state_folder, whole_lines
from merging.checkpoints.mechanisms import covered_releases
from merging.privacy.composition import NO_GUARANTEE, Price, add
from merging.privacy.ledger import Ledger
from merging.privacy.words import price_in_words
from search.loop import jsonl

PUBLIC_NOISE = "whoever knows its public seed can subtract the noise"


def starts_file() -> Path:
    """Returns the file, in $EVOMERGE_STATE or ~/.local/state/evomerge."""
    return state_folder() / "private_starts.jsonl"


def write_start(
    dataset: str, release: str, price: Price, out: Path, *, void: str | None = None
) -> None:
    """Writes that a release is about to leave the process, unless it is written down already.

    Args:
        release: its identity, the same in every start of one run and in the run's ledger.
        price: what it may cost at most: a run that is killed may have spent it.
        out: where it goes to, for people.
        void: why it promises nothing, whatever the price; None: it does.

    Raises:
        UserError: the file cannot be written, or is damaged.
    """
    if void is not None:
        price = NO_GUARANTEE
    line = {"dataset": dataset, "release": release, **price.to_json(), "void": void}
    line["out"] = str(out.absolute())
    with _opened() as path:
        if release not in _starts(path):
            _mend_end(path)
            jsonl.append(path, line)


def check_starts() -> None:
    """Raises what `write_start` would, before long work."""
    with _opened() as path:
        _starts(path)


def others(dataset: str, own: Collection[str]) -> list[Price]:
    """Returns the prices of all that was started on a data set, but for the releases in `own`."""
    return [start.price for start in _others(dataset, own)]


def others_in_words(dataset: str, own: Collection[str]) -> str:
    """Returns how many other runs there were on a data set, and what they add up to."""
    starts = _others(dataset, own)
    if not starts:
        return f"no other run on {dataset} is known here"
    one, total = len(starts) == 1, add(start.price for start in starts)
    runs = "1 other run" if one else f"{len(starts)} other runs"
    verb = "adds" if one else "add up to"
    if total.vacuous:
        verb = "leaves" if one else "leave"
    why = "".join(f": {void}" for void in dict.fromkeys(s.void for s in starts) if void)
    return f"{runs} on {dataset}, kept or thrown away, {verb} {price_in_words(total)}{why}"


def beside_others(ledger: Ledger, what: str) -> Ledger:
    """Returns the ledger of a search (a merge, a training), with a note on all other runs."""
    own = {spend.release for spend in ledger.spends if spend.release is not None}
    for spend in ledger.spends:
        own |= covered_releases(spend.mechanisms or (), certain=True)
    words = [others_in_words(dataset, own) for dataset in ledger.guarantees]
    if not words:
        return ledger
    note = f"This is of this {what} alone; {'; '.join(words)}."
    return replace(ledger, notes=(*ledger.notes, note))


@contextmanager
def _opened() -> Iterator[Path]:
    """Yields the file, locked; other processes wait."""
    path = starts_file()
    try:
        with appended(path):
            yield path
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}), where it is added up what was "
            "spent on private data: set EVOMERGE_STATE to a directory that is kept"
        ) from error


@dataclass(frozen=True)
class _Start:
    """One line of the file; see `write_start`."""

    dataset: str
    release: str
    price: Price
    void: str | None

    @classmethod
    def read(cls, line: bytes) -> "_Start":
        content = json.loads(line)
        epsilon = content["epsilon"]  # null: infinite
        price = Price(math.inf if epsilon is None else float(epsilon), float(content["delta"]))
        return cls(content["dataset"], content["release"], price, content.get("void"))


def _others(dataset: str, own: Collection[str]) -> list[_Start]:
    starts = _starts(starts_file()).values()
    return [start for start in starts if start.dataset == dataset and start.release not in own]


def _starts(path: Path) -> dict[str, _Start]:
    """Returns release -> start; half a line at the end is of a start that never began."""
    try:
        return {start.release: start for start in map(_Start.read, whole_lines(path))}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}), so what was spent on private data cannot be added "
            "up: restore it from a copy"
        ) from error


def _mend_end(path: Path) -> None:
    content = path.read_bytes()
    jsonl.truncate(path, content.rfind(b"\n") + 1)
