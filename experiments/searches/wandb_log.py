"""Reads the binary log of an offline Weights & Biases run: which steps have reached the disk."""

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_MAGIC = b":W&B"
_HEADER_BYTES = 7  # of the file, and of every fragment: checksum 4, length 2, kind 1
_BLOCK_BYTES = 32 * 1024
_WHOLE, _LAST = 1, 4  # kinds of fragment that end a record


def records(path: Path) -> Iterator[Any]:
    """Yields the ``wandb_internal_pb2.Record`` messages of a ``run-*.wandb`` file.

    W&B writes blocks of 32 KiB, so the file of a killed process ends anywhere: what is incomplete
    at its end is left out.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        logger.warning("%s is not in the format that this version of evomerge reads", path)
        return
    for payload in _payloads(data):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(payload)
        except DecodeError:
            return
        yield record


def _payloads(data: bytes) -> Iterator[bytes]:
    position, payload = _HEADER_BYTES, b""
    while position + _HEADER_BYTES <= len(data):
        room = _BLOCK_BYTES - position % _BLOCK_BYTES
        if room < _HEADER_BYTES:  # too little for a fragment: the block ends in padding
            position += room
            continue
        _checksum, size, kind = struct.unpack_from("<IHB", data, position)
        fragment = data[position + _HEADER_BYTES : position + _HEADER_BYTES + size]
        if kind == 0 or len(fragment) < size:
            return
        payload += fragment
        position += _HEADER_BYTES + size
        if kind in (_WHOLE, _LAST):
            yield payload
            payload = b""


def steps(path: Path) -> dict[int, dict[str, Any]]:
    """Returns what was logged at every step of a ``run-*.wandb`` file, by key."""
    return {
        record.history.step.num: {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    }
