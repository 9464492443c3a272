"""Losses of a reference model in a file, which calibrate membership inference on other models."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.tasks.data import read_text
from merging.files import write_text


def write_reference(path: Path, model: str, losses: Mapping[str, Sequence[float]]) -> None:
    """Writes what `Membership` reads as `reference`.

    Args:
        path: JSON file.
        model: which one gave the losses; for the reader.
        losses: text's digest to nats of each token, from `Membership.losses`.
    """
    write_text(path, json.dumps({"model": model, "losses": dict(losses)}) + "\n")


def read_reference(path: Path, counts: Mapping[str, int]) -> dict[str, tuple[float, ...]]:
    """Returns the losses of the reference model in a file, in nats, for each token of a text.

    Args:
        counts: text's digest to the number of its tokens.
    """
    if not path.is_file():
        raise ValueError(f"reference {path} does not exist: write_reference writes it")
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"reference {path} is not JSON: {error}") from error
    losses = content.get("losses") if isinstance(content, dict) else None
    if not isinstance(losses, dict):
        raise ValueError(f"reference {path} has no 'losses'; write_reference writes it")
    lacking = sum(digest not in losses for digest in counts)
    if lacking:
        raise ValueError(
            f"reference {path} lacks {lacking} of {len(counts)} texts: write it from the same data"
        )
    return {digest: _checked(path, losses[digest], count) for digest, count in counts.items()}


def _checked(path: Path, losses: Any, count: int) -> tuple[float, ...]:
    if not isinstance(losses, list) or len(losses) != count:
        found = len(losses) if isinstance(losses, list) else "no"
        raise ValueError(
            f"reference {path} has {found} losses for a text of {count} tokens: write it anew, "
            "with the same tokenizer and longest text (write_reference)"
        )
    if not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
        raise ValueError(f"reference {path}: losses must be finite numbers")
    return tuple(losses)
