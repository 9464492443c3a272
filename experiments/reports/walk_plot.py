"""The chart of a search along paths: fitness, and what its steps promised and gave."""

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reports.svg import BLUE, FAINT, GREEN, ORANGE, STYLE, to_svg
from experiments.reports.walk import WalkFigures


def walk_chart(walk: WalkFigures) -> str:
    """Returns two panels over the generations, as an SVG element."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.4))
        for place, draw in enumerate((_fitness, _gains)):
            axes = figure.add_axes((0.06 + 0.5 * place, 0.15, 0.43, 0.8))
            draw(axes, walk)
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.set_xlabel("generation")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.tick_params(length=0, labelsize=8.5)
            axes.legend(loc="best", frameon=False, fontsize=8)
        return to_svg(figure, "walk", "fitness and gains by generation")


def _fitness(axes: Axes, walk: WalkFigures) -> None:
    at = np.arange(1, len(walk.mean) + 1)
    axes.plot(at, walk.best, color=BLUE, linewidth=1.0, alpha=0.5, label="best sample")
    axes.plot(at, walk.mean, color=BLUE, linewidth=2.0, label="mean of the samples")
    asked = np.isfinite(walk.centre)
    if asked.any():
        axes.plot(
            at[asked], walk.centre[asked], "o-", color=GREEN, markersize=3, lw=1.2, label="centre"
        )


def _gains(axes: Axes, walk: WalkFigures) -> None:
    at = np.arange(1, len(walk.mean) + 1)
    promised = np.concatenate([[0.0], np.cumsum(walk.promised)])
    axes.plot(at, promised, color=ORANGE, linewidth=1.6, label="promised by slopes")
    axes.plot(at, walk.mean - walk.mean[0], color=BLUE, linewidth=2.0, label="given")
