"""Accuracy against empirical privacy: one panel for each depth, one line for each way."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.split_privatize.front import Front, FrontRow
from experiments.papers.split_privatize.page import PAPERS_GAIN, PAPERS_LOSS


def write_plot(front: Front, path: Path) -> None:
    """Writes the plot; the paper's point lies where its gain and loss take the unprotected one."""
    figure = Figure(figsize=(4.8 * len(front.clean), 4.6), layout="constrained")
    first = None
    for number, blocks in enumerate(front.clean, start=1):
        axes = figure.add_subplot(1, len(front.clean), number, sharey=first)
        first = first or axes
        _depth(axes, front, blocks)
    every = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {label: line for shown in every for line, label in zip(*shown, strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def _depth(axes: Axes, front: Front, blocks: int) -> None:
    clean = front.clean[blocks]
    for number, way in enumerate(dict.fromkeys(row.way for row in front.noised)):
        rows = [r for r in front.noised if (r.way, r.blocks) == (way, blocks)]
        if rows:
            _line(axes, [clean, *sorted(rows, key=lambda row: row.ratio)], way, f"C{number}")
    x, y = float(clean.privacy.mean()), 100 * float(clean.accuracy.mean())
    axes.scatter(x, y, color="black", zorder=3, label="unprotected")
    paper = x + PAPERS_GAIN, y - PAPERS_LOSS
    axes.scatter(*paper, marker="*", s=160, color="red", zorder=3, label="paper: +0.62, -1 point")
    axes.set(xlabel="empirical privacy", ylabel="accuracy, %", title=f"behind {blocks} blocks")
    axes.set_xlim(-0.02, max(1.02, paper[0] + 0.02))


def _line(axes: Axes, rows: list[FrontRow], label: str, colour: str) -> None:
    """Draws means, every seed's points faint; dotted: against the paper's attacker alone."""
    accuracy = [100 * float(row.accuracy.mean()) for row in rows]
    axes.plot(
        [float(row.privacy.mean()) for row in rows], accuracy, "o-", color=colour, label=label
    )
    weak = [float(row.papers.mean()) for row in rows]
    axes.plot(weak, accuracy, ":", color=colour, label=f"{label}, paper's attacker")
    for row in rows:
        axes.scatter(row.privacy, 100 * row.accuracy, s=9, alpha=0.4, color=colour)
