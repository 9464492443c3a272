"""Losses of a reference model in a file, which calibrate membership inference on other models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluators.tasks.data import read_text
from merging.arrays import Vector
from merging.files import write_text


def write_reference(path: Path, model: str, losses: Mapping[str, float]) -> None:
    """Writes what `Membership` reads as `reference`.

    Args:
        path: of the JSON file.
        model: which one gave the losses; for the reader.
        losses: text's digest to nats per token, from `Membership.losses`.
    """
    write_text(path, json.dumps({"model": model, "losses": dict(losses)}, indent=1) + "\n")


def read_reference(path: Path, items: Sequence[str]) -> Vector:
    """Returns ``(items,)`` losses of the reference model, in nats per token.

    Args:
        path: of the JSON file.
        items: digests of the texts.

    Raises:
        ValueError: no such file, or it lacks a text.
    """
    if not path.is_file():
        raise ValueError(
            f"reference {path} does not exist: `evomerge reference-losses MODEL DATA OUT` "
            "writes it"
        )
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"reference {path} is not JSON: {error}") from error
    losses = content.get("losses") if isinstance(content, dict) else None
    if not isinstance(losses, dict):
        raise ValueError(f"reference {path} has no 'losses'; write it with reference-losses")
    lacking = sum(item not in losses for item in items)
    if lacking:
        raise ValueError(
            f"reference {path} lacks {lacking} of {len(items)} texts: write it from the same data"
        )
    values = [losses[item] for item in items]
    if not all(isinstance(each, float) and math.isfinite(each) for each in values):
        raise ValueError(f"reference {path}: losses must be finite numbers")
    return np.array(values, dtype=np.float64)
