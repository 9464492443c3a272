"""A comparison as plain text, as Markdown and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.compare.comparison import ComparedPair, Comparison, ComparisonRow, RunValues
from experiments.reports.table import duration, number
from experiments.runs.markdown import markdown_table

METHOD = (
    "Each test is of the difference in mean held-out fitness, over items and seeds together, by "
    "10,000 draws: in every draw the difference is moved, for each task, by a draw from Student's "
    "t times the standard error of the items' paired differences (corrected for their skewness "
    "as by Hall), and by one times the seeds' own standard error (without the part of it that "
    "the items explain), so that few items and few seeds count as few. Runs of equal seed are "
    "paired where both sides have the same seeds. p is two-sided, twice the smaller share of "
    "draws on either side of 0; it is corrected for the number of tests in this table by Holm's "
    "method. Intervals are 95 % and not corrected. Items count as independent."
)

_SHARES = (0.15, 0.4)
"""Shares of the longest search after which the best is shown, from `_LONG` evaluations on."""

_LONG = 100


@dataclass(frozen=True)
class TextTable:
    """A table as text: ``rows`` of as many cells as ``head`` has."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def aligned(self) -> str:
        """Returns the table for a terminal, in columns of equal width."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in (self.head, *self.rows)
        ]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([lines[0], rule, *lines[1:]])

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        return markdown_table(self.head, self.rows, "l")


def mean_sd(values: RunValues, sign: str = "±") -> str:
    """Returns mean and standard deviation; the mean alone where all values are one.

    Example:
        >>> [mean_sd(RunValues(v)) for v in ((1.0, 2.0), (None,))]
        ['1.5000 ± 0.7071', '-']
    """
    return number(values.mean) + (f" {sign} {number(values.sd)}" if values.sd else "")


def p_text(p: float | None) -> str:
    """Returns a p-value with as many digits as its draws carry."""
    if p is None:
        return "-"
    return f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def fitness_table(comparison: Comparison, sign: str = "±") -> TextTable:
    """Returns fitness by split, of groups and references; a split without any is left out."""
    rows = [*comparison.groups, *comparison.references]
    splits: dict[str, Callable[[ComparisonRow], RunValues]] = {
        "search": lambda row: row.search,
        "selection": lambda row: row.selection,
        "held-out": lambda row: row.report,
        "optimism": lambda row: row.optimism,
    }
    shown = {name: of for name, of in splits.items() if any(of(row).known for row in rows)}
    cells = [
        [
            row.label,
            str(len(row.seeds)) if row.kind == "evolved" else "",
            *(mean_sd(of(row), sign) for of in shown.values()),
        ]
        for row in rows
    ]
    return TextTable(["group", "seeds", *shown], cells)


def score_table(comparison: Comparison, sign: str = "±") -> TextTable:
    """Returns the held-out score of every task, of groups and references."""
    better = {"minimize": "lower", "maximize": "higher"}
    tasks = comparison.tasks
    return TextTable(
        ["group", *(f"{task.metric} ({better[task.direction]} is better)" for task in tasks)],
        [
            [row.label, *(mean_sd(row.scores[task.metric], sign) for task in tasks)]
            for row in (*comparison.groups, *comparison.references)
        ],
    )


def cost_table(comparison: Comparison) -> TextTable:
    """Returns what the searches of each group cost, how soon they reached the target, and more.

    That is the mean over seeds of the best search fitness after shares of the longest search.
    """
    longest = max((len(row.curve[0]) for row in comparison.groups), default=0)
    marks = [round(share * longest) for share in _SHARES] if longest >= _LONG else []
    head = ["group", "item evaluations per run", "evaluations to target", "time to target"]
    head += [f"search after {mark}" for mark in marks]
    rows = []
    for row in comparison.groups:
        items, reach = row.item_evaluations.mean, row.reach
        evaluations = seconds = "-"
        if reach is not None:
            count = reach.evaluations
            evaluations = "not reached" if count is None else f"{count:g}"
            if reach.reached < reach.runs:
                evaluations += f" ({reach.reached} of {reach.runs} runs)"
            seconds = "-" if reach.seconds is None else duration(reach.seconds)
        means = row.curve[0]
        after = [f"{means[mark - 1]:.4f}" if mark <= len(means) else "-" for mark in marks]
        spent = "-" if items is None else f"{items:,.0f}"
        rows.append([row.label, spent, evaluations, seconds, *after])
    return TextTable(head, rows)


def difference_table(comparison: Comparison) -> TextTable:
    """Returns the tests; over what, where they are not all alike."""
    head = ["first", "second", "difference", "95 % interval", "p", "p (Holm)"]
    rows = [_test_cells(test) for test in comparison.tests]
    if len(_kinds(comparison)) > 1:
        head.append("over")
        rows = [[*row, _kind(test)] for row, test in zip(rows, comparison.tests, strict=True)]
    return TextTable(head, rows)


def _test_cells(test: ComparedPair) -> list[str]:
    gap = test.difference
    interval = "-"
    if gap.low is not None and gap.high is not None:
        interval = f"{gap.low:+.4f} to {gap.high:+.4f}"
    effect = f"{gap.effect:+.4f}"
    return [test.first, test.second, effect, interval, p_text(gap.p), p_text(test.corrected)]


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
    if not comparison.unfinished:
        return list(comparison.notes)
    names = ", ".join(path.name for path in comparison.unfinished)
    unfinished = f"Left out, as unfinished ({len(comparison.unfinished)}): {names}."
    return [*comparison.notes, unfinished]


def plain(comparison: Comparison) -> str:
    """Returns the comparison for a terminal, in ASCII but for the names of groups."""
    parts = [
        "Fitness, mean +- sd over seeds (higher is better)",
        fitness_table(comparison, "+-").aligned(),
        "Held-out scores",
        score_table(comparison, "+-").aligned(),
        target_text(comparison),
        cost_table(comparison).aligned(),
    ]
    if comparison.tests:
        parts += ["Differences in held-out fitness", difference_table(comparison).aligned()]
    parts += [verdict(comparison), *(f"Note: {note}" for note in notes(comparison))]
    return "\n\n".join(parts)


def markdown(comparison: Comparison) -> str:
    """Returns the comparison as Markdown: groups, task scores, cost, tests, how it was tested."""
    parts = [
        verdict(comparison),
        *(f"> {note}" for note in notes(comparison)),
        "Fitness, mean ± sd over seeds; higher is better.",
        fitness_table(comparison).markdown(),
    ]
    if comparison.held_out:
        parts += ["Held-out scores.", score_table(comparison).markdown()]
    parts += [target_text(comparison), cost_table(comparison).markdown()]
    if comparison.tests:
        differences = difference_table(comparison).markdown()
        parts += ["Differences in held-out fitness.", differences, method_text(comparison)]
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
            row[name] = _values_json(getattr(source, name))
        row["scores"] = {key: _values_json(scores) for key, scores in source.scores.items()}
    values["unfinished"] = [str(path) for path in comparison.unfinished]
    return {**values, "method": method_text(comparison), "verdict": verdict(comparison)}


def _values_json(values: RunValues) -> dict[str, Any]:
    return {"mean": values.mean, "sd": values.sd, "values": list(values.values)}
