"""A comparison as plain text, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from experiments.compare.comparison import (
    ComparedPair,
    Comparison,
    ComparisonRow,
    Reach,
    RunValues,
)
from experiments.reports.table import duration, number

METHOD = (
    "Each test is a hierarchical paired bootstrap of the difference in mean held-out fitness, "
    "10,000 draws: in every draw the held-out items are drawn anew with replacement within each "
    "task, the same ones for both sides, and the mean over seeds is moved by a draw from "
    "Student's t times the seeds' own standard error (without the part of it that the items "
    "explain), so that few seeds count as few. Runs of equal seed are paired where both sides "
    "have the same seeds. p is two-sided, twice the smaller share of draws on either side of 0; "
    "it is corrected for the number of tests in this table by Holm's method. Intervals are 95 % "
    "and not corrected. Items count as independent and, within a task, alike: where a score "
    "weighs them (bits per byte) all are moved together until their mean is the score."
)


def spread_text(spread: RunValues, sign: str = "±", digits: int = 4) -> str:
    """Returns mean and standard deviation; the mean alone where all values are one.

    Example:
        >>> [spread_text(RunValues(v)) for v in ((1.0, 2.0), (None,))]
        ['1.5000 ± 0.7071', '-']
    """
    if not spread.sd:
        return number(spread.mean, digits)
    return f"{number(spread.mean, digits)} {sign} {number(spread.sd, digits)}"


def p_text(p: float | None) -> str:
    """Returns a p-value with as many digits as its draws carry."""
    if p is None:
        return "-"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def reach_text(reach: Reach | None, value: Callable[[Reach], str | None]) -> str:
    """Returns how soon the target was reached, and by how many runs where not by all."""
    if reach is None:
        return "-"
    share = "" if reach.reached == reach.runs else f" ({reach.reached} of {reach.runs} runs)"
    return (value(reach) or "not reached") + share


def evaluations_text(reach: Reach | None) -> str:
    """Returns the median number of evaluations to the target."""
    return reach_text(reach, lambda r: None if r.evaluations is None else f"{r.evaluations:g}")


def seconds_text(reach: Reach | None) -> str:
    """Returns the median time to the target."""
    return "-" if reach is None or reach.seconds is None else duration(reach.seconds)


Column = tuple[str, Callable[[ComparisonRow], str]]


def columns(comparison: Comparison, sign: str = "±") -> list[Column]:
    """Returns heads and cells of the table of groups."""
    found: list[Column] = [("group", lambda row: row.label), ("seeds", _seeds)]
    splits: list[tuple[str, Callable[[ComparisonRow], RunValues]]] = [
        ("search", lambda row: row.search),
        ("selection", lambda row: row.selection),
        ("held-out", lambda row: row.report),
        ("optimism", lambda row: row.optimism),
    ]
    rows = [*comparison.groups, *comparison.references]
    for name, spread in splits:
        if any(spread(row).known for row in rows):
            found.append((name, _shown(spread, sign)))
    return found


def score_columns(comparison: Comparison, sign: str = "±") -> list[Column]:
    """Returns heads and cells of the table of held-out task scores."""
    found: list[Column] = [("group", lambda row: row.label)]
    for task in comparison.tasks:
        better = "lower" if task.direction == "minimize" else "higher"
        head = f"{task.metric} ({better} is better)"
        found.append((head, _shown(partial(_score, metric=task.metric), sign)))
    return found


def _shown(
    spread: Callable[[ComparisonRow], RunValues], sign: str
) -> Callable[[ComparisonRow], str]:
    return lambda row: spread_text(spread(row), sign)


def _score(row: ComparisonRow, metric: str) -> RunValues:
    return row.scores[metric]


def cost_columns() -> list[Column]:
    """Returns heads and cells of the table of what the search cost."""
    return [
        ("group", lambda row: row.label),
        ("item evaluations per run", lambda row: _whole(row.item_evaluations.mean)),
        ("evaluations to target", lambda row: evaluations_text(row.reach)),
        ("time to target", lambda row: seconds_text(row.reach)),
    ]


def difference_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Returns heads and rows of the table of tests; over what, where they are not all alike."""
    heads = ["first", "second", "difference", "95 % interval", "p", "p (Holm)"]
    rows = [_test_cells(test) for test in comparison.tests]
    if len(_kinds(comparison)) > 1:
        heads.append("over")
        rows = [[*row, _kind(test)] for row, test in zip(rows, comparison.tests, strict=True)]
    return heads, rows


def _test_cells(test: ComparedPair) -> list[str]:
    found = test.difference
    interval = "-"
    if found.low is not None and found.high is not None:
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
    effect = f"{found.effect:+.4f}"
    return [test.first, test.second, effect, interval, p_text(found.p), p_text(test.corrected)]


def _kind(test: ComparedPair) -> str:
    return test.difference.over + (", paired seeds" if test.difference.paired_seeds else "")


def _kinds(comparison: Comparison) -> list[str]:
    return sorted({_kind(test) for test in comparison.tests})


def method_text(comparison: Comparison) -> str:
    """Returns how it was tested, in words."""
    kinds = _kinds(comparison)
    what = f" Here: {len(comparison.tests)} tests over {kinds[0]}." if len(kinds) == 1 else ""
    return METHOD + what


def verdict(comparison: Comparison) -> str:
    """Returns in a sentence which differences stand the test, at 0.05 after correction."""
    tested = [test for test in comparison.tests if test.corrected is not None]
    if not tested:
        return "No difference between groups was tested."
    sure = [test for test in tested if (test.corrected or 0.0) < 0.05]
    best = max(sure, key=lambda test: abs(test.difference.effect), default=None)
    count = f"{len(sure)} of {len(tested)} differences stand the test (p < 0.05, corrected)"
    if comparison.against is not None:
        above = sum(test.difference.effect > 0 for test in sure)
        count = (
            f"{above} of {len(tested)} groups are above {comparison.against} and "
            f"{len(sure) - above} below it (p < 0.05, corrected)"
        )
    if best is None:
        return f"{count}."
    effect = best.difference.effect
    ahead, behind = (best.first, best.second) if effect > 0 else (best.second, best.first)
    return (
        f"{count}; the largest difference: {ahead} is above {behind} by {abs(effect):.4f} "
        f"held-out fitness, p {p_text(best.corrected)}."
    )


def target_text(comparison: Comparison) -> str:
    """Returns what the target is, in a sentence."""
    if comparison.target is None:
        return f"No target: {comparison.target_name}."
    return (
        f"Target: search fitness {comparison.target:.4f}, {comparison.target_name}. Median over "
        "seeds of the evaluations, and of the time spent in them, until a candidate reached it."
    )


def notes(comparison: Comparison) -> list[str]:
    """Returns what a reader has to know, unfinished runs among it."""
    found = list(comparison.notes)
    if comparison.unfinished:
        names = ", ".join(path.name for path in comparison.unfinished)
        found.append(f"Left out, as unfinished ({len(comparison.unfinished)}): {names}.")
    return found


def plain(comparison: Comparison) -> str:
    """Returns the comparison for a terminal, in ASCII but for the names of groups."""
    rows = [*comparison.groups, *comparison.references]
    parts = [
        "Fitness, mean +- sd over seeds (higher is better)",
        _aligned(columns(comparison, "+-"), rows),
        "Held-out scores",
        _aligned(score_columns(comparison, "+-"), rows),
        target_text(comparison),
        _aligned(cost_columns(), comparison.groups),
    ]
    if comparison.tests:
        parts += ["Differences in held-out fitness", _lines(*difference_table(comparison))]
    parts += [verdict(comparison), *(f"Note: {note}" for note in notes(comparison))]
    return "\n\n".join(parts)


def markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown: groups, task scores, cost, tests, how it was tested."""
    rows = [*comparison.groups, *comparison.references]
    parts = [
        verdict(comparison),
        *(f"> {note}" for note in notes(comparison)),
        "Fitness, mean ± sd over seeds; higher is better.",
        _table(columns(comparison), rows),
    ]
    if comparison.held_out:
        parts += ["Held-out scores.", _table(score_columns(comparison), rows)]
    parts += [target_text(comparison), _table(cost_columns(), comparison.groups)]
    if comparison.tests:
        table = _pipes(*difference_table(comparison))
        parts += ["Differences in held-out fitness.", table, method_text(comparison)]
    return "\n\n".join(parts) + "\n"


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison as JSON values: every number of the tables, unrounded."""
    values = asdict(comparison)
    for row, source in zip(
        [*values["groups"], *values["references"]],
        [*comparison.groups, *comparison.references],
        strict=True,
    ):
        row["runs"] = [str(path) for path in source.runs]
        row["curve"] = {
            name: [None if value != value else value for value in numbers]  # NaN is no JSON
            for name, numbers in zip(("mean", "sd"), source.curve, strict=True)
        }
        for name in ("search", "selection", "report", "optimism", "item_evaluations"):
            row[name] = _spread_json(getattr(source, name))
        row["scores"] = {key: _spread_json(spread) for key, spread in source.scores.items()}
    values["unfinished"] = [str(path) for path in comparison.unfinished]
    return {**values, "method": method_text(comparison), "verdict": verdict(comparison)}


def _spread_json(spread: RunValues) -> dict[str, Any]:
    return {"mean": spread.mean, "sd": spread.sd, "values": list(spread.values)}


def _seeds(row: ComparisonRow) -> str:
    return str(len(row.seeds)) if row.kind == "evolved" else ""


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _cells(found: Sequence[Column], rows: Sequence[ComparisonRow]) -> list[list[str]]:
    return [[cell(row) for _, cell in found] for row in rows]


def _aligned(found: Sequence[Column], rows: Sequence[ComparisonRow]) -> str:
    return _lines([head for head, _ in found], _cells(found, rows))


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in (heads, *rows)
    ]
    return "\n".join([lines[0], rule, *lines[1:]])


def _table(found: Sequence[Column], rows: Sequence[ComparisonRow]) -> str:
    return _pipes([head for head, _ in found], _cells(found, rows))


def _pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + " --- |" * len(heads), *map(line, rows)])
