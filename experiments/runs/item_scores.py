"""What every model scored on every single item, in a run's files: what paired tests need."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.runs.files import read_lines
from experiments.runs.model_scores import SPLITS
from merging.arrays import Vector
from search.loop import jsonl


@dataclass(frozen=True, eq=False)
class ItemScores:
    """One model's per-item scores on one split.

    Args:
        items: task to the digest of its items in their order; equal digests, equal items.
        cases: ``task/metric`` to ``(items,)``, in the metric's own units and direction; only
            metrics that are the mean of their items.
    """

    items: Mapping[str, str]
    cases: Mapping[str, Vector]


def cases_path(run: Path, split: str) -> Path:
    """Returns the file of a split, for example ``report_cases.jsonl``.

    Of the search items it holds the references alone: candidates' are in ``cases.jsonl``.
    """
    return run / f"{split}_cases.jsonl"


def append_item_scores(
    run: Path,
    split: str,
    number: int,
    *,
    name: str,
    kind: str,
    items: Mapping[str, str],
    cases: Mapping[str, Vector | None],
) -> None:
    """Writes one model's line; equal scores give equal bytes.

    Args:
        number: ``id`` of the model's line in ``references.jsonl``, which is written after it.
        items: task to the digest of its items.
        cases: ``task/metric`` to ``(items,)``; None, or one that is not finite, is left out.
    """
    kept = {
        key: values.tolist()
        for key, values in cases.items()
        if values is not None and np.isfinite(values).all()
    }
    line = {"id": number, "name": name, "kind": kind, "items": dict(items), "cases": kept}
    jsonl.append(cases_path(run, split), line)


def drop_unentered(run: Path, entered: Container[int]) -> None:
    """Cuts off what a killed run had not yet entered in ``references.jsonl``."""
    for split in SPLITS:
        path = cases_path(run, split)
        lines = jsonl.read(path)
        kept = len(lines)
        while kept and lines[kept - 1]["id"] not in entered:
            kept -= 1
        if kept < len(lines):
            jsonl.keep_first(path, kept)


def read_item_scores(run: Path, split: str) -> dict[tuple[str, str], ItemScores]:
    """Returns ``(kind, name)`` to per-item scores; the winner is ``("evolved", "evolved")``.

    Empty where the run keeps none: a split without items, or a run of an older version.

    Raises:
        ValueError: the file is damaged; names it and the line.
    """
    path = cases_path(run, split)
    if not path.exists():
        return {}
    scores = {}
    for number, line in enumerate(read_lines(path), start=1):
        lacking = [field for field in ("name", "kind", "items", "cases") if field not in line]
        if lacking:
            raise ValueError(f"{path}, line {number} lacks {lacking}; restore the file")
        cases = {key: np.array(values, np.float64) for key, values in line["cases"].items()}
        scores[line["kind"], line["name"]] = ItemScores(line["items"], cases)
    return scores
