"""compare.html: one page that says which groups of runs differ, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.compare import plots
from experiments.compare.comparison import Comparison, ComparisonRow
from experiments.compare.text import (
    Column,
    columns,
    cost_columns,
    difference_table,
    method_text,
    notes,
    score_columns,
    target_text,
    verdict,
)
from experiments.reports.page import TableCell, figure, page, paragraph, section, table


def render_comparison(comparison: Comparison) -> str:
    """Returns the page as text; the same comparison gives the same text."""
    return page(
        "Comparison of runs",
        _headline(comparison),
        _groups(comparison),
        _differences(comparison),
        _search(comparison),
        _scores(comparison),
        _options(comparison),
    )


def _headline(comparison: Comparison) -> str:
    runs = sum(len(row.runs) for row in comparison.groups)
    sure = any(
        test.corrected is not None and test.corrected < 0.05 and test.difference.effect > 0
        for test in comparison.tests
    )
    return "\n".join(
        [
            "<h1>Comparison of runs</h1>",
            paragraph(
                f"{runs} finished runs in {len(comparison.groups)} groups that agree in "
                "everything but the seed."
            ),
            paragraph(verdict(comparison), "verdict good" if sure else "verdict"),
            *(paragraph(note, "muted") for note in notes(comparison)),
        ]
    )


def _groups(comparison: Comparison) -> str:
    rows = [*comparison.groups, *comparison.references]
    marked = [0] if comparison.groups else []
    parts = [
        paragraph(
            "Mean ± standard deviation over seeds, higher is better. Search items ranked the "
            "candidates, selection items named the winner, held-out items were read once, at the "
            "end. Optimism is search minus held-out fitness of the winner.",
            "muted",
        ),
        _table(columns(comparison), rows, marked),
    ]
    if comparison.held_out:
        chart = plots.held_out(comparison)
        caption = (
            "Each dot is the winner of one seed; upright strokes are means, bars one standard "
            "deviation; dashed: the best expert and the best static merge."
        )
        parts.append(figure(chart, caption))
    return section("Fitness", *parts)


def _differences(comparison: Comparison) -> str:
    if not comparison.tests:
        return ""
    shown = len(plots.shown_tests(comparison))
    caption = "First minus second, with the 95 % interval; p after Holm's correction."
    if comparison.against is not None:
        caption = (
            f"Each group minus {comparison.against}, with the 95 % interval; p after Holm's "
            "correction."
        )
    caption += " In colour: p < 0.05, green where the first is better."
    if shown < len(comparison.tests):
        caption += f" The first {shown} of {len(comparison.tests)} tests."
    heads, rows = difference_table(comparison)
    named = ("first", "second", "over")
    head = [TableCell(name, "text" if name in named else "") for name in heads]
    body = [
        [
            TableCell(cell, "text wrap" if name in named else "")
            for name, cell in zip(heads, row, strict=True)
        ]
        for row in rows
    ]
    return section(
        "Differences in held-out fitness",
        figure(plots.forest(comparison), caption),
        table(head, body),
        paragraph(method_text(comparison), "muted"),
    )


def _search(comparison: Comparison) -> str:
    caption = (
        "Best fitness so far on the search items, mean over seeds and one standard deviation "
        "around it; a run that has ended keeps what it found."
    )
    if comparison.target is not None:
        caption += " Dashed: the target."
    return section(
        "Search",
        figure(plots.curves(comparison), caption),
        paragraph(target_text(comparison), "muted"),
        _table(cost_columns(), comparison.groups),
    )


def _scores(comparison: Comparison) -> str:
    if not comparison.held_out:
        return ""
    rows = [*comparison.groups, *comparison.references]
    return section(
        "Held-out scores",
        paragraph("Main metric of every task in its own units, mean ± sd over seeds.", "muted"),
        _table(score_columns(comparison), rows),
    )


def _options(comparison: Comparison) -> str:
    """Returns what the labels stand for, and which runs are in a group."""
    keys = list(dict.fromkeys(key for row in comparison.groups for key in row.options))
    head = [
        TableCell("group"),
        *(TableCell(key, "text wrap") for key in keys),
        TableCell("runs", "text"),
    ]
    body = [
        [
            TableCell(row.label, "wrap"),
            *(TableCell(row.options.get(key, ""), "text wrap") for key in keys),
            TableCell(", ".join(path.name for path in row.runs), "text wrap"),
        ]
        for row in comparison.groups
    ]
    return section("Groups", table(head, body))


def _table(
    found: Sequence[Column], rows: Sequence[ComparisonRow], marked: Sequence[int] = ()
) -> str:
    head = [TableCell(name, "wrap") for name, _ in found]
    body = [
        [
            TableCell(cell(row), "wrap" if index == 0 else "")
            for index, (_, cell) in enumerate(found)
        ]
        for row in rows
    ]
    return table(head, body, marked)
