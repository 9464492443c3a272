"""Charts of a comparison: best so far per group, held-out scores by seed, differences."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.compare.comparison import ComparedPair, Comparison, ComparisonRow
from experiments.compare.text import p_text
from experiments.reports.svg import (
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    beside,
    short,
    to_svg,
)

_PALETTE = (BLUE, RED, GREEN, ORANGE, PURPLE, "#0e8a8a", "#a8437c", "#6b6b00")
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.4)))
_WIDTH = 8.6  # inches, as all charts of a page
MOST_TESTS = 30


def _colour(index: int) -> str:
    return _PALETTE[index % len(_PALETTE)]


def curves(comparison: Comparison) -> str:
    """Returns the chart of the best fitness so far against evaluations, mean and sd over seeds."""
    rows = comparison.groups
    legend = 0.21 * math.ceil(len(rows) / 2) + 0.1  # inches
    height = 3.9 + legend
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        bottom = (legend + 0.55) / height
        axes = figure.add_axes((0.085, bottom, 0.895, 0.985 - bottom))
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        for index, row in enumerate(rows):
            _curve(axes, row, index)
        if comparison.target is not None:
            axes.axhline(comparison.target, color=MUTED, linewidth=1.0, dashes=(5, 3))
        axes.set_ylim(*_curve_window(comparison))
        axes.set_xlim(0, max(len(row.curve[0]) for row in rows) * 1.01 + 0.5)
        axes.set_xlabel("evaluations")
        axes.set_ylabel("best fitness so far, search items")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(length=0)
        figure.legend(
            loc="lower left",
            bbox_to_anchor=(0.07, 0.0),
            ncols=2,
            frameon=False,
            fontsize=9,
            handlelength=2.4,
            labelspacing=0.25,
        )
        return to_svg(figure, "curves", "best fitness so far against evaluations, per group")


def _curve(axes: Axes, row: ComparisonRow, index: int) -> None:
    mean, sd = (np.array(values, np.float64) for values in row.curve)
    x = np.arange(1, len(mean) + 1)
    colour, dashes = _colour(index), _DASHES[index // len(_PALETTE) % len(_DASHES)]
    axes.plot(
        x,
        mean,
        color=colour,
        linestyle=dashes,
        linewidth=1.8,
        drawstyle="steps-post",
        label=short(row.label, 56),
    )
    axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.13, linewidth=0, step="post")


def _curve_window(comparison: Comparison) -> tuple[float, float]:
    """Returns the ends of the axis: from where the slowest stands after a tenth of its budget."""
    lows, highs = [], []
    for row in comparison.groups:
        mean, sd = (np.array(values, np.float64) for values in row.curve)
        known = mean[np.isfinite(mean)]
        if known.size:
            lows.append(float(known[len(known) // 10]))
            highs.append(float(np.nanmax(mean + sd)))
    if comparison.target is not None:
        lows.append(comparison.target)
        highs.append(comparison.target)
    if not lows:
        return 0.0, 1.0
    margin = 0.06 * (max(highs) - min(lows)) or 0.5
    return min(lows) - margin, max(highs) + margin


def held_out(comparison: Comparison) -> str:
    """Returns the chart of held-out fitness: a line per group, its seeds as dots, mean and sd."""
    rows = [row for row in comparison.groups if row.report.known]
    levels = [row for row in comparison.references if row.report.known and row.kind != "base"]
    with rc_context(STYLE):
        names = [short(row.label, 60) for row in rows]
        figure, axes = _lines_figure(names, foot=0.75)
        for line, row in enumerate(rows):
            colour = _colour(comparison.groups.index(row))
            values, mean = row.report.known, row.report.mean or 0.0
            sd = row.report.sd or 0.0
            axes.plot([mean - sd, mean + sd], [line, line], color=colour, linewidth=5, alpha=0.25)
            axes.plot([mean, mean], [line - 0.28, line + 0.28], color=colour, linewidth=2.2)
            axes.scatter(
                values, [line] * len(values), s=26, color=colour, alpha=0.75, linewidths=0
            )
            beside(axes, line, f"{mean:.4f}", colour, axes.get_yaxis_transform())
        for level in levels:
            axes.axvline(
                level.report.mean or 0.0,
                color=COLOURS[level.kind],
                linewidth=1.1,
                dashes=(5, 3),
                label=f"{level.label}, {level.report.mean:.4f}",
            )
        if levels:
            axes.legend(
                loc="upper right",
                bbox_to_anchor=(1.0, -0.42 / _inches(names)),
                ncols=2,
                frameon=False,
                fontsize=9,
            )
        axes.set_xlabel("held-out fitness", loc="left")
        return to_svg(figure, "held-out", "held-out fitness per group and seed")


def forest(comparison: Comparison) -> str:
    """Returns the chart of differences with their intervals, the first `MOST_TESTS` tests."""
    tests = shown_tests(comparison)
    with rc_context(STYLE):
        names = [_pair(test, comparison) for test in tests]
        figure, axes = _lines_figure(names, foot=0.5)
        axes.axvline(0.0, color=INK, linewidth=1.0)
        for line, test in enumerate(tests):
            gap = test.difference
            sure = test.corrected is not None and test.corrected < 0.05
            colour = MUTED if not sure else GREEN if gap.effect > 0 else RED
            if gap.low is not None and gap.high is not None:
                axes.plot([gap.low, gap.high], [line, line], color=colour, linewidth=1.8)
            axes.scatter([gap.effect], [line], s=34, marker="s", color=colour, linewidths=0)
            text = f"p {p_text(test.corrected)}"
            beside(axes, line, text, colour, axes.get_yaxis_transform())
        axes.set_xlabel("difference in held-out fitness, 95 % interval")
        return to_svg(figure, "forest", "differences in held-out fitness with intervals")


def shown_tests(comparison: Comparison) -> Sequence[ComparedPair]:
    """Returns the tests that the forest plot has room for: the first ones."""
    return comparison.tests[:MOST_TESTS]


def _pair(test: ComparedPair, comparison: Comparison) -> str:
    if comparison.against is not None:
        return short(test.first, 50)
    return f"{short(test.first, 50)}\nminus {short(test.second, 50)}"


def _inches(names: Sequence[str]) -> float:
    """Returns the height of the lines; a name may take two."""
    return (0.3 if all("\n" not in name for name in names) else 0.44) * len(names) + 0.15


def _lines_figure(names: Sequence[str], *, foot: float) -> tuple[Figure, Axes]:
    """Returns a figure with a named line per entry, the first at the top.

    Args:
        foot: room below for the axis, in inches.
    """
    height = _inches(names) + foot + 0.1
    left = min(0.62, 0.02 + 0.0088 * max(len(part) for name in names for part in name.split("\n")))
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((left, foot / height, 0.9 - left, _inches(names) / height))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for label in axes.get_yticklabels():
        label.set_color(INK)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes
