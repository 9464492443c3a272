"""A deduplicated model into a zoo: pieces of its bases, and its own blocks anew."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.deduplication.models import DedupModel
from merging.checkpoints.checkpoint import same_bytes
from merging.checkpoints.privacy_record import RECORD_FILE, record_text
from merging.deduplication.substitution import Segment, Substitution
from merging.privacy.ledger import Ledger
from merging.zoo.blocks import Bytes
from merging.zoo.errors import ZooError
from merging.zoo.piecing import Piece
from merging.zoo.store import SOURCE, Zoo

DEDUP_FILE = "dedup.json"
"""Beside a deduplicated model: which blocks stand at its positions."""


def store(
    zoo: Zoo,
    name: str,
    model: DedupModel,
    bases: Sequence[DedupModel],
    substitution: Substitution,
    ledger: Ledger,
) -> None:
    """Adds a deduplicated model under `name`; its bases are added first where they are missing.

    One that is there already, made of the same blocks, is left as it is. The record beside it is
    that of `ledger`; other files are the target's.

    Raises:
        ZooError: a name is taken by another model, or the zoo cannot be written.
    """
    lineage = {
        "target": model.checkpoint.sha256,
        "bases": [base.checkpoint.sha256 for base in bases],
        "block_size": model.blocks.block_size,
        "pointers": substitution.pointers.tolist(),
    }
    if (found := _lineage(zoo, name)) is not None:
        if found != lineage:
            raise ZooError(f"{name} is in the zoo {zoo.directory} already: choose another suffix")
        return
    lenders = [stored(zoo, base) for base in bases]
    like, made = _like(zoo, name, model)
    files = {
        file.name: file.raw()
        for file in zoo.files(like)
        if (not file.entries or "/" in file.name) and file.name != RECORD_FILE
    }
    files[DEDUP_FILE] = json.dumps(lineage).encode()

    def side_files(identity: str) -> Mapping[str, bytes]:
        text = record_text(ledger.record(), identity, words=ledger.sentences())
        return {**files, RECORD_FILE: text.encode()}

    pieces = pieces_of(zoo, model, dict(zip(lenders, bases, strict=True)), substitution)
    zoo.add_pieces(name, like, pieces, side_files)
    if made:
        zoo.remove(like)


def check_name(zoo: Zoo, name: str) -> None:
    """Raises ZooError, before long work, for a name that another kind of model has."""
    if name in {one.name for one in zoo.models()} and _lineage(zoo, name) is None:
        raise ZooError(f"{name} is in the zoo {zoo.directory} already: choose another suffix")


def stored(zoo: Zoo, model: DedupModel) -> str:
    """Returns the name of a model in the zoo, to which it is added where it is missing."""
    known = {one.sha256: one.name for one in zoo.models() if one.kind == "stored"}
    named = model.source.removeprefix(SOURCE).rpartition("/")[2]
    if model.source.startswith(SOURCE) and named in known.values():
        return named
    if model.checkpoint.sha256 in known:
        return known[model.checkpoint.sha256]
    return zoo.add(model.checkpoint.path, model.name).name


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
    raw = [file.raw() for file in zoo.files(name) if file.name == DEDUP_FILE]
    return json.loads(raw[0]) if raw else None


def _like(zoo: Zoo, name: str, model: DedupModel) -> tuple[str, bool]:
    """Returns a stored model of the target's headers, and whether it is there for that alone."""
    whole = f"{name}.whole"
    known = {one.sha256: one.name for one in zoo.models() if one.kind == "stored"}
    found = known.get(model.checkpoint.sha256)
    found = zoo.add(model.checkpoint.path, whole).name if found is None else found
    return found, found == whole


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
