"""Losses of a reference model in a file, which calibrate membership inference on other models."""

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
        path: JSON file.
        model: which one gave the losses; for the reader.
        losses: text's digest to nats per token, from `Membership.losses`.
    """
    write_text(path, json.dumps({"model": model, "losses": dict(losses)}, indent=1) + "\n")


def read_reference(path: Path, digests: Sequence[str]) -> Vector:
    """Returns ``(texts,)`` losses of the reference model in a file, in nats per token."""
    if not path.is_file():
        raise ValueError(f"reference {path} does not exist: write_reference writes it")
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"reference {path} is not JSON: {error}") from error
    losses = content.get("losses") if isinstance(content, dict) else None
    if not isinstance(losses, dict):
        raise ValueError(f"reference {path} has no 'losses'; write_reference writes it")
    lacking = sum(digest not in losses for digest in digests)
    if lacking:
        raise ValueError(
            f"reference {path} lacks {lacking} of {len(digests)} texts: write it from the "
            "same data"
        )
    values = [losses[digest] for digest in digests]
    if not all(isinstance(loss, float) and math.isfinite(loss) for loss in values):
        raise ValueError(f"reference {path}: losses must be finite numbers")
    return np.array(values, dtype=np.float64)
