"""The report's section on a search along paths: whether its centre climbs or walks, and why."""

import math
from pathlib import Path

import numpy as np

from experiments.reports.page import Row, TableCell, figure, paragraph, section, table
from experiments.reports.walk import WalkFigures, generations, walk_of
from experiments.reports.walk_plot import walk_chart
from experiments.runs.files import RunFiles, read_lines
from experiments.runs.item_scores import read_item_scores
from merging.arrays import Vector
from search.winners.shrinkage import Strata

_CAPTION = (
    "Left: fitness on the search items around every centre. Right: what the steps promised "
    "by the slopes along their own noises, added up, and by how much the samples' mean rose. In "
    "so many dimensions independent noises are orthogonal, so that the path itself cannot tell a "
    "walk from a climb; slopes can."
)
_ROWS = 12
"""Most generations in the table."""


def walk_section(files: RunFiles) -> str:
    """Returns the section of a search along paths; empty text where there is nothing to say."""
    walk = _read_walk(files)
    if walk is None:
        return ""
    own_items = any("items" in line for line in files.history)
    parts = [paragraph(text) for text in sentences(walk, (files.summary or {}).get("numbers"))]
    if own_items:
        parts.append(
            paragraph(
                "Every generation was scored on items of its own, so that part of what a step "
                "seems to give is the items'.",
                "muted",
            )
        )
    parts += [figure(walk_chart(walk), _CAPTION), _table(walk)]
    return section("Signal and walk", *parts)


def walk_sentences(run: Path) -> list[str]:
    """Returns the sentences of a run's directory; none where it searched along no paths."""
    files = RunFiles.read(run)
    walk = _read_walk(files)
    return [] if walk is None else sentences(walk, (files.summary or {}).get("numbers"))


def _read_walk(files: RunFiles) -> WalkFigures | None:
    """Returns the walk; None: no paths, or of every pair of sides the difference alone is told."""
    found = generations(files.history)
    if len(found) < 2 or not any(abs(one.fitness.mean()) > 1e-12 for one in found):
        return None
    return walk_of(found, *_cases(files))


def sentences(walk: WalkFigures, numbers: int | None = None) -> list[str]:
    """Returns what a walk was, in a sentence, and why, in a few.

    Args:
        numbers: how many independent numbers one noise has; None: not known.
    """
    promised, given = float(walk.promised.sum()), float(walk.given.sum())
    moved = "climbs" if given > 0 else "walks"
    signal = ""
    if numbers is not None and np.isfinite(walk.aligned).any():
        signal = (
            f": {walk.signal(numbers):.2g} of a step's length lies along the gradient "
            f"({walk.noises} noises of {numbers:,} numbers)"
        )
    first = (
        f"The centre {moved}{signal}. By the slopes along their own noises {len(walk.length)} "
        f"steps promised {promised:+.3f}; the samples' mean changed by {given:+.3f}, "
        f"{_quarters(walk)}."
    )
    return [first, *_reach(walk), *_stillness(walk), *_noise(walk)]


def _quarters(walk: WalkFigures) -> str:
    quarter = max(1, len(walk.mean) // 4)
    begin, end = walk.mean[:quarter].mean(), walk.mean[-quarter:].mean()
    return f"from {begin:.4f} in the first quarter of the generations to {end:.4f} in the last"


def _reach(walk: WalkFigures) -> list[str]:
    if walk.reach is None:
        return []
    promised, cost = walk.promised.sum(), (walk.promised - walk.given).sum()
    return [
        f"What was lost to curvature, {cost:.3f}, grows with the square of a step's length: to "
        f"second order, from the same centres, steps {walk.reach:.2g} times as long would have "
        f"given most, {promised * walk.reach / 2:+.3f}."
    ]


def _stillness(walk: WalkFigures) -> list[str]:
    return [] if walk.length.any() else ["The centre never moved."]


def _noise(walk: WalkFigures) -> list[str]:
    if walk.floor is None:
        return []
    spread = walk.best - walk.mean
    agreement = ""
    if walk.agreement is not None:
        agreement = f"; slopes on two halves of the items have a cosine of {walk.agreement:.2f}"
    return [
        f"Noise floor: two candidates of a generation have to differ by {2 * walk.floor:.4f} "
        f"(two standard errors over the items) to differ on others as well; the best lay "
        f"{spread.mean():.4f} above the mean{agreement}."
    ]


def _cases(files: RunFiles) -> tuple[dict[int, Vector], Strata]:
    """Returns the candidates' per-item scores, and the items of every task with its weight."""
    terms, path = (files.summary or {}).get("terms"), files.path / "cases.jsonl"
    if not terms or not path.exists():
        return {}, ()
    counts = {
        key: len(cases)
        for one in read_item_scores(files.path, "search").values()
        for key, cases in one.cases.items()
    }
    if not all(term["key"] in counts for term in terms):
        return {}, ()
    strata = [(counts[term["key"]], term["weight"]) for term in terms]
    return {line["id"]: np.array(line["cases"], np.float64) for line in read_lines(path)}, strata


def _table(walk: WalkFigures) -> str:
    head: Row = [
        "generation",
        TableCell("centre", hint="fitness of the centre, where it was asked"),
        TableCell("mean", hint="of the samples"),
        TableCell("best", hint="of the samples"),
        TableCell("step", hint="length of the step from here, in lengths of one noise"),
        TableCell("from start", hint="distance in lengths of one noise"),
        TableCell("promised", hint="what the step gives by the slopes along its own noises"),
        TableCell("given", hint="by how much the samples' mean rose"),
    ]
    last = len(walk.mean) - 1
    shown = np.unique(np.linspace(0, last, min(_ROWS, last + 1)).round().astype(int)).tolist()
    return table(head, [_row(walk, t) for t in shown])


def _row(walk: WalkFigures, t: int) -> Row:
    levels = [_number(values[t], ".4f") for values in (walk.centre, walk.mean, walk.best)]
    return [
        str(t + 1),
        *levels,
        _number(_at(walk.length, t), ".3g"),
        _number(walk.distance[t], ".3g"),
        _number(_at(walk.promised, t), "+.4f"),
        _number(_at(walk.given, t), "+.4f"),
    ]


def _at(values: Vector, t: int) -> float:
    return float(values[t]) if t < len(values) else math.nan


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"
