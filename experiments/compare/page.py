"""compare.html: one page that says which groups of runs differ, and how sure that is."""

from collections.abc import Sequence

from experiments.compare import plots
from experiments.compare.comparison import Comparison
from experiments.compare.text import (
    TextTable,
    cost_table,
    difference_table,
    fitness_table,
    method_text,
    notes,
    score_table,
    target_text,
    verdict,
)
from experiments.reports.page import Row, TableCell, figure, page, paragraph, section, table


def render_comparison(comparison: Comparison) -> str:
    """Returns the page as text; the same comparison gives the same text."""
    return page(
        "Comparison of runs",
        _headline(comparison),
        _fitness_section(comparison),
        _difference_section(comparison),
        _search_section(comparison),
        _score_section(comparison),
        _option_section(comparison),
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


def _fitness_section(comparison: Comparison) -> str:
    parts = [
        paragraph(
            "Mean ± standard deviation over seeds, higher is better. Search items ranked the "
            "candidates, selection items named the winner, held-out items were read once, at the "
            "end. Optimism is the gain on the base, on search items less on held-out items.",
            "muted",
        ),
        _html_table(fitness_table(comparison), marked=[0] if comparison.groups else []),
    ]
    if comparison.held_out:
        chart = plots.held_out(comparison)
        caption = (
            "Each dot is the winner of one seed; upright strokes are means, bars one standard "
            "deviation; dashed: the best expert and the best static merge."
        )
        parts.append(figure(chart, caption))
    return section("Fitness", *parts)


def _difference_section(comparison: Comparison) -> str:
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
    differences = difference_table(comparison)
    named = [name in ("first", "second", "over") for name in differences.head]
    head = [
        TableCell(name, "text" if words else "")
        for name, words in zip(differences.head, named, strict=True)
    ]
    body = [
        [
            TableCell(cell, "text wrap" if words else "")
            for cell, words in zip(row, named, strict=True)
        ]
        for row in differences.rows
    ]
    return section(
        "Differences in held-out fitness",
        figure(plots.forest(comparison), caption),
        table(head, body),
        paragraph(method_text(comparison), "muted"),
    )


def _search_section(comparison: Comparison) -> str:
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
        _html_table(cost_table(comparison)),
    )


def _score_section(comparison: Comparison) -> str:
    if not comparison.held_out:
        return ""
    return section(
        "Held-out scores",
        paragraph("Main metric of every task in its own units, mean ± sd over seeds.", "muted"),
        _html_table(score_table(comparison)),
    )


def _option_section(comparison: Comparison) -> str:
    """Returns what the labels stand for, and which runs are in a group."""
    keys = list(dict.fromkeys(key for row in comparison.groups for key in row.options))
    head: Row = [
        "group",
        *(TableCell(key, "text wrap") for key in keys),
        TableCell("runs", "text"),
    ]
    body: list[Row] = [
        [
            TableCell(row.label, "wrap"),
            *(TableCell(row.options.get(key, ""), "text wrap") for key in keys),
            TableCell(", ".join(path.name for path in row.runs), "text wrap"),
        ]
        for row in comparison.groups
    ]
    return section("Groups", table(head, body))


def _html_table(text: TextTable, marked: Sequence[int] = ()) -> str:
    rows: list[Row] = [[TableCell(first, "wrap"), *others] for first, *others in text.rows]
    return table([TableCell(name, "wrap") for name in text.head], rows, marked)
