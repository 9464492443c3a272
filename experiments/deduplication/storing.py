"""A deduplicated model into a zoo: pieces of its bases, and its own blocks anew."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from experiments.deduplication.models import DedupModel
from experiments.runs.directory import check_writable
from experiments.zoo.adding import absent, free_name, plain
from experiments.zoo.names import as_name
from merging.checkpoints.checkpoint import same_bytes
from merging.checkpoints.privacy_record import RECORD_FILE, PrivacyRecord, record_text
from merging.deduplication.substitution import Segment, Substitution
from merging.privacy.ledger import Ledger
from merging.zoo import keeping
from merging.zoo.blocks import Bytes
from merging.zoo.errors import ZooError
from merging.zoo.piecing import Piece
from merging.zoo.store import SOURCE, Zoo

DEDUP_FILE = "dedup.json"
"""Beside a deduplicated model: which blocks stand at its positions."""

_CARD = "README.md"
_TARGETS_OWN = (RECORD_FILE, _CARD, "recipe.json", "training.json")


def store(
    zoo: Zoo,
    name: str,
    model: DedupModel,
    bases: Sequence[DedupModel],
    substitution: Substitution,
    ledger: Ledger,
) -> None:
    """Adds a deduplicated model under `name`; its bases are added first where they are missing.

    One that is there already, of the same blocks and with the same privacy record, is left as it
    is. Record and card are made of `ledger`; other files are the target's, but for what says how
    it was made.

    Raises:
        ZooError: the name is taken by another model, or the zoo cannot be written.
    """
    lineage = _parents(model, bases) | {"pointers": substitution.pointers.tolist()}
    if (found := _lineage(zoo, name)) is not None:
        if found != lineage or _record(zoo, name) != ledger.record():
            raise ZooError(
                f"{name} is in the zoo {zoo.directory} already, of other blocks or with another "
                "privacy record: choose another suffix"
            )
        _drop_left(zoo, name)
        return
    lenders = [stored(zoo, base) for base in bases]
    pieces = pieces_of(zoo, model, dict(zip(lenders, bases, strict=True)), substitution)
    with _whole(zoo, name, model) as like:
        files = {
            file.name: file.raw()
            for file in zoo.files(like)
            if (not file.entries or "/" in file.name) and file.name not in _TARGETS_OWN
        }
        files[DEDUP_FILE] = json.dumps(lineage).encode()
        files[_CARD] = _card(name, model, bases, ledger).encode()

        def side_files(identity: str) -> Mapping[str, bytes]:
            text = record_text(ledger.record(), identity, words=ledger.sentences())
            return {**files, RECORD_FILE: text.encode()}

        zoo.add_pieces(name, like, pieces, side_files)


def check_name(zoo: Zoo, name: str, model: DedupModel, bases: Sequence[DedupModel]) -> None:
    """Refuses, before any question is paid for, what `store` would refuse at the end.

    Raises:
        ZooError: another model has the name, or it cannot name one.
    """
    known = {one.name: one.sha256 for one in zoo.models()}
    found = _lineage(zoo, name)
    alike = found is not None and found.items() >= _parents(model, bases).items()
    whole = known.get(f"{name}.whole", model.checkpoint.sha256)
    if (name in known and not alike) or whole != model.checkpoint.sha256:
        raise ZooError(
            f"{name} is in the zoo {zoo.directory} already, made of other models: choose another "
            "suffix"
        )
    if not {name, f"{name}.whole"} & set(known):
        keeping.check_name(zoo.directory, f"{name}.whole")


def check_room(zoo: Zoo, models: Iterable[DedupModel]) -> None:
    """Refuses, before any question is paid for, models that the zoo cannot take.

    Raises:
        UserError, ZooError, CheckpointError: it has no room, or they are pickles.
    """
    missing = absent(zoo, {model.source: model.checkpoint.path for model in models})
    check_writable(zoo.directory, "store", sum(missing.values()))


def _parents(model: DedupModel, bases: Sequence[DedupModel]) -> dict[str, Any]:
    return {
        "target": model.checkpoint.sha256,
        "bases": [base.checkpoint.sha256 for base in bases],
        "block_size": model.blocks.block_size,
    }


def stored(zoo: Zoo, model: DedupModel) -> str:
    """Returns the name of a model in the zoo; its content is added where it is missing."""
    known = {one.sha256: one.name for one in zoo.models() if one.kind == "stored"}
    if model.checkpoint.sha256 in known:
        return known[model.checkpoint.sha256]
    with plain(model.source, model.checkpoint.path) as files:
        return zoo.add(files, free_name(zoo, as_name(model.name))).name


def pieces_of(
    zoo: Zoo, model: DedupModel, bases: Mapping[str, DedupModel], substitution: Substitution
) -> dict[str, list[Piece | Bytes | bytes]]:
    """Returns every tensor of a deduplicated model, by its name in the target's files.

    Positions are bytes into the bases' tensors; a row that was padded takes a slice only. A
    tensor that the target's files hold twice is so again.

    Args:
        bases: by their names in the zoo, in the order of the substitution's.
    """
    names = _file_names(model)
    lenders = [(zoo.pieces(name), _file_names(base)) for name, base in bases.items()]

    def content(segment: Segment) -> Sequence[Piece | Bytes | bytes]:
        if segment.origin == "zeros":
            return [bytes(segment.length)]
        if segment.origin == "own":
            raw = _raw(model.checkpoint[segment.tensor])
            return [raw[segment.start : segment.start + segment.length]]
        pieces, files = lenders[int(segment.origin)]
        return cut(pieces[files[segment.tensor]], segment.start, segment.length)

    found = {
        names[tensor]: [part for s in substitution.segments(tensor) for part in content(s)]
        for tensor in model.checkpoint
    }
    return found | {twin: found[names[first]] for twin, first in _twins(model).items()}


def cut(pieces: Sequence[Piece], start: int, length: int) -> list[Piece]:
    """Returns the pieces of bytes `start` to `start + length` of what `pieces` hold."""
    parts, at = [], 0
    for piece in pieces:
        low, high = max(start, at), min(start + length, at + piece.length)
        if low < high:
            parts.append(Piece(piece.block, piece.start + low - at, high - low))
        at += piece.length
    return parts


def _lineage(zoo: Zoo, name: str) -> Any:
    """Returns what a deduplicated model is made of; None: there is none of the name."""
    if name not in {one.name for one in zoo.models()}:
        return None
    return _beside(zoo, name, DEDUP_FILE)


def _record(zoo: Zoo, name: str) -> PrivacyRecord | None:
    content = _beside(zoo, name, RECORD_FILE)
    return content and PrivacyRecord.from_json({k: content[k] for k in ("spends", "unrecorded")})


def _beside(zoo: Zoo, name: str, file: str) -> Any:
    """Returns a JSON file of a model; None: it has none."""
    raw = [each.raw() for each in zoo.files(name) if each.name == file]
    return json.loads(raw[0]) if raw else None


@contextmanager
def _whole(zoo: Zoo, name: str, model: DedupModel) -> Iterator[str]:
    """Yields the target itself as a stored model, for the time being where the zoo lacks it.

    Another one of the same weights would not do: what lies beside its weights may differ.
    """
    if model.source.startswith(SOURCE):
        home, own = Zoo.of(model.source)
        if home.directory == zoo.directory and zoo.model(own).sha256 == model.checkpoint.sha256:
            yield own
            return
    whole = _drop_left(zoo, name)
    with plain(model.source, model.checkpoint.path) as files:
        zoo.add(files, whole)
    yield whole
    zoo.remove(whole)


def _drop_left(zoo: Zoo, name: str) -> str:
    """Returns the name of what is stored for the time being; what a killed start left is gone."""
    whole = f"{name}.whole"
    if whole in {one.name for one in zoo.models()}:
        zoo.remove(whole)
    return whole


def _card(name: str, model: DedupModel, bases: Sequence[DedupModel], ledger: Ledger) -> str:
    """Returns a card of its own: the target's tells of other weights, at another price."""
    lenders = ", ".join(base.name for base in bases)
    lines = [f"- {' '.join(sentence.split())}" for sentence in ledger.sentences()]
    return "\n".join(
        [
            f"# {name}: {model.name} with blocks of others",
            "",
            f"Made by `evomerge zoo dedup`: blocks of {lenders}, or its own, stand in the place "
            f"of some blocks of {model.name}; `{DEDUP_FILE}` has all of them.",
            "",
            "## Privacy",
            "",
            *lines,
            "",
        ]
    )


def _file_names(model: DedupModel) -> Mapping[str, str]:
    """Returns the module's names -> those in the files; models without are refused before."""
    return model.checkpoint.file_names or {}


def _raw(tensor: Tensor) -> Bytes:
    raw: Bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw


def _twins(model: DedupModel) -> dict[str, str]:
    """Returns names in the files of tensors stored twice -> the module's name of the other."""
    checkpoint = model.checkpoint
    return {
        twin: tensor
        for twin in set(checkpoint.stored) - set(_file_names(model).values())
        for tensor in model.blocks.tensors
        if checkpoint.stored.shape(twin) == checkpoint.shape(tensor)
        and same_bytes(checkpoint.stored[twin], checkpoint[tensor])
    }
