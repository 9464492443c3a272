"""A knob's coefficients as a heat map, groups down and experts across."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reports.svg import INK, STYLE, short, to_svg

_NUMBERED_CELLS = 600
"""Most cells of a heat map in which numbers are still written."""
_LABELLED_ROWS = 60
"""Most rows of a heat map that are all labelled; of more, an even choice is."""


def heat_map(knob: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Returns a knob's values, groups down and experts across, red above zero and blue below.

    Numbers stand in the cells where there is room; of very many groups an even choice is labelled.

    Args:
        rows: group to expert to value; a cell stays empty where a group has none for an expert.
    """
    groups, experts = list(rows), list(dict.fromkeys(e for row in rows.values() for e in row))
    values = np.array([[rows[g].get(e, math.nan) for e in experts] for g in groups])
    numbered = values.size <= _NUMBERED_CELLS
    row_in = 0.27 if len(groups) <= _LABELLED_ROWS else max(0.02, 14.0 / len(groups))
    label_in = 0.075 * min(34, max(len(g) for g in groups)) + 0.2
    column_in = min(1.1, max(0.28, 6.6 / len(experts)))
    longest = min(18, max(len(e) for e in experts))
    slanted = longest * 0.09 > column_in
    top_in = 0.3 + 0.055 * longest if slanted else 0.3
    width, height = label_in + column_in * len(experts) + 1.4, row_in * len(groups) + top_in + 0.1
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        left, bottom = label_in / width, 0.05 / height
        wide, tall = column_in * len(experts) / width, row_in * len(groups) / height
        axes = figure.add_axes((left, bottom, wide, tall))
        bound = float(np.nanmax(np.abs(values))) or 1.0
        image = axes.pcolormesh(values, cmap="RdBu_r", vmin=-bound, vmax=bound, rasterized=False)
        axes.invert_yaxis()
        if numbered:
            _cell_numbers(axes, values, bound, 9.0 if column_in >= 0.5 else 7.0)
        axes.xaxis.tick_top()
        axes.set_xticks(
            np.arange(len(experts)) + 0.5,
            [short(e, 18) for e in experts],
            rotation=35 if slanted else 0,
            ha="left" if slanted else "center",
            color=INK,
        )
        labelled = range(0, len(groups), max(1, math.ceil(len(groups) / _LABELLED_ROWS)))
        names = [short(groups[index], 34) for index in labelled]
        axes.set_yticks([index + 0.5 for index in labelled], names, color=INK)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if len(groups) >= 4 or not numbered:  # fewer rows: the numbers say it all
            bar_tall = min(row_in * len(groups), 2.2) / height
            bar_left, bar_bottom = left + wide + 0.2 / width, bottom + tall - bar_tall
            _colour_bar(figure, image, (bar_left, bar_bottom, 0.13 / width, bar_tall))
        return to_svg(figure, f"heat-{knob}", f"{knob}: {len(groups)} groups by {len(experts)}")


def _colour_bar(figure: Figure, image: Any, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    figure.colorbar(image, cax=axes).outline.set_visible(False)
    axes.tick_params(length=0, labelsize=8)


def _cell_numbers(axes: Axes, values: npt.NDArray[np.float64], bound: float, size: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            continue
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{value:.2f}".replace("-0.00", "0.00"),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if abs(value) > 0.62 * bound else INK,
        )
