"""What a deduplication came to: as JSON, and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.deduplication.models import DedupModel, promised
from experiments.deduplication.targets import Deduplicated
from experiments.runs.files import Json
from merging.deduplication.substitution import cluster_ratio
from merging.privacy.words import rounded_up

SUMMARY_FILE = "summary.json"


def summary_of(done: Sequence[Deduplicated], models: Mapping[str, DedupModel]) -> dict[str, Any]:
    """Returns a run's result as JSON; `lines` shows it.

    ``compression`` is what is stored anew over all numbers of the target, of the whole family
    with every model that stays as it is counted in full.
    """
    targets = {one.model.name: _of(one) for one in done}
    whole = [model.blocks for name, model in models.items() if name not in targets]
    return {
        "compression": cluster_ratio(whole, [one.substitution for one in done]),
        "epsilon_increase": sum(
            one["epsilon"]["after"] - one["epsilon"]["before"]
            for one in targets.values()
            if one["epsilon"]["after"] is not None
        ),
        "checks": sum(one["checks"] for one in targets.values()),
        "whole": [name for name in models if name not in targets],
        "targets": targets,
    }


def lines(summary: Json) -> list[str]:
    """Returns the table, a line for every target and one for all together."""
    head = ["target", "from", "C.R. %", "blocks", "checks", "failed", "ε", "ε now", "score", "now"]
    rows = [head, *(_row(name, one) for name, one in summary["targets"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    whole = ", ".join(summary["whole"]) or "none"
    table.append(
        f"all together {100 * summary['compression']:.1f} % of their numbers, {whole} whole; "
        f"ε grows by {rounded_up(summary['epsilon_increase'], 4)} in sum{_lost(summary)}; "
        f"{summary['checks']} checks"
    )
    for name, one in summary["targets"].items():
        table += [f"note: {name}: {note}" for note in _notes(one)]
    return table


def _lost(summary: Json) -> str:
    """Returns whose promise the sum of increases leaves out, because it is lost."""
    lost = [name for name, one in summary["targets"].items() if _loses(one["epsilon"])]
    return f", but {', '.join(lost)} without a promise now" if lost else ""


def _loses(epsilon: Json) -> bool:
    return epsilon["before"] is not None and epsilon["after"] is None


def _of(one: Deduplicated) -> dict[str, Any]:
    before, after = one.model.ledger, one.ledger
    return {
        "bases": [base.name for base in one.bases],
        "taken_from": [one.bases[i].name for i in one.substitution.sources],
        "compression": one.substitution.ratio,
        "new_blocks": len(one.substitution.kept),
        "blocks": len(one.model.blocks),
        "block_size": one.model.blocks.block_size,
        "checks": len(one.asked.answers),
        "failed": one.asked.answers.count(False),
        "epsilon": {
            "before": promised(before) if before.private else None,
            "after": promised(after) if after.private else None,
        },
        "scores": one.scores,
        "privacy": after.describe(),
    }


def _row(name: str, one: Json) -> list[str]:
    split = one["scores"].get("report") or one["scores"].get("check") or {}
    scores = (split.get(who) or {} for who in ("original", "deduplicated"))
    return [
        name,
        ", ".join(one["bases"]),
        f"{100 * one['compression']:.2f}",
        f"{one['new_blocks']} of {one['blocks']}",
        str(one["checks"]),
        str(one["failed"]),
        *(_epsilon(one["epsilon"][when]) for when in ("before", "after")),
        *(" ".join(f"{value:.4f}" for value in each.values()) or "-" for each in scores),
    ]


def _notes(one: Json) -> list[str]:
    """Returns what a reader of the ratio must know."""
    notes = []
    if one["new_blocks"] == one["blocks"]:
        notes.append("no block of it may go, so it stays as it is and is not added to the zoo")
    for split, scores in one["scores"].items():
        if base := scores.get("base"):
            values = ", ".join(f"{key} {value:.4f}" for key, value in base.items())
            notes.append(f"its base in its place has {values} ({split} items)")
    return notes


def _epsilon(value: float | None) -> str:
    return "none" if value is None else rounded_up(value, 4)
