"""A picture of what the models of a zoo cost and share."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reports.svg import BLUE, FAINT, INK, MUTED, ORANGE, STYLE, short
from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError
from experiments.zoo.sizes import counted
from merging.zoo.sharing import Sharing, sharing
from merging.zoo.store import ZooModel

_NUMBERED = 24
"""Most models for which the shares are written into the cells."""
_LABELLED = 60
"""Most models that all have a label; of more, an even choice has."""


def draw(
    models: Sequence[ZooModel],
    needs: Mapping[str, Mapping[Hashable, int]],
    plain_bytes: Mapping[str, int | None],
    file: Path,
) -> None:
    """Writes the picture of a zoo; its recipes are one row.

    Args:
        needs: as `sharing` takes them.
        file: what ends its name says of which kind it is.

    Raises:
        UserError: the file cannot be written, or there is nothing to draw.
    """
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {file}: name a file that ends in .png, .svg or .pdf")
    if not models:
        raise UserError("--plot: the zoo is empty: add a model first")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--plot {file}: its directory does not exist: make it first")
    check_writable(file.absolute().parent, "--plot")
    recipes = [model.name for model in models if model.kind == "recipe"]
    rows = {name: blocks for name, blocks in needs.items() if name not in recipes}
    plain = {name: plain_bytes[name] or 0 for name in rows}
    if recipes:
        together = counted(len(recipes), "recipe")
        rows[together] = {block: n for name in recipes for block, n in needs[name].items()}
        plain[together] = 0
    sharing_plot(sharing(rows), plain).savefig(file, dpi=150, bbox_inches="tight")


def sharing_plot(shared: Sharing, plain_bytes: Mapping[str, int]) -> Figure:
    """Returns bars of what each model takes, beside a matrix of what it shares with whom.

    Args:
        shared: of at least one model.
        plain_bytes: model to the size of its plain files.
    """
    names = shared.names
    row_in = 0.3 if len(names) <= _NUMBERED else max(0.05, 9.0 / len(names))
    label_in = 0.085 * min(34, max(map(len, names))) + 0.6
    side, bar_in, top_in, bottom_in = max(2.2, row_in * len(names)), 3.6, 1.05, 0.65
    width, height = label_in + bar_in + side + 1.2, side + top_in + bottom_in
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        bottom, tall = bottom_in / height, side / height
        bars = figure.add_axes((label_in / width, bottom, bar_in / width, tall))
        matrix = figure.add_axes(((width - side - 0.6) / width, bottom, side / width, tall))
        _bars(bars, shared, plain_bytes)
        _matrix(matrix, shared)
        labelled = range(0, len(names), max(1, -(-len(names) // _LABELLED)))
        rows = [f"{short(names[i], 34)}  {i + 1}" for i in labelled]
        bars.set_yticks(list(labelled), rows, color=INK)
        matrix.set_xticks(list(labelled), [str(i + 1) for i in labelled], color=INK)
        matrix.set_yticks([])
        for axes in (bars, matrix):
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.tick_params(length=0)
        figure.legend(loc="upper left", frameon=False, fontsize=9, borderaxespad=0.2)
    return figure


def _bars(axes: Axes, shared: Sharing, plain_bytes: Mapping[str, int]) -> None:
    rows = np.arange(len(shared.names))
    plain = np.array([plain_bytes[name] for name in shared.names]) / 1e6
    own, part = shared.own / 1e6, shared.parts / 1e6
    axes.barh(rows, plain, height=0.8, color=FAINT, label="size as plain files")
    axes.barh(rows, own, height=0.44, color=ORANGE, label="stored for it alone")
    several = "stored for several: its even part"
    axes.barh(rows, part - own, left=own, height=0.44, color=BLUE, label=several)
    axes.set_xlabel(f"MB ({shared.total / 1e6:,.1f} stored)")


def _matrix(axes: Axes, shared: Sharing) -> None:
    needed = np.maximum(np.diagonal(shared.shared), 1)
    shares = 100 * shared.shared / needed[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=130, aspect="auto", interpolation="nearest")
    if len(shared.names) <= _NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 85 else INK
            text = f"{share:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.xaxis.tick_top()
    axes.set_xlabel(
        "% of what the row\u2019s model needs\nthat the column\u2019s needs too", color=MUTED
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
