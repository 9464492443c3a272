"""Charts of a search: fitness over evaluations, and the front of several objectives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.reports.svg import (
    BLUE,
    COLOURS,
    FAINT,
    RED,
    STYLE,
    candidates_and_front,
    model_mark,
    short,
    to_svg,
)


@dataclass(frozen=True)
class Level:
    """A horizontal line: a model's fitness on the search items.

    Args:
        kind: ``base``, ``expert``, ``static`` or ``evolved``: its colour.
        fitness: ``(objectives,)``.
    """

    label: str
    kind: str
    fitness: tuple[float, ...]


def convergence(
    ids: Sequence[int],
    fitness: Sequence[float | None],
    levels: Sequence[Level],
    name: str = "fitness",
) -> str:
    """Returns the chart of fitness over evaluations, with the best so far and reference lines.

    Args:
        fitness: of the same evaluations, higher is better; None: failed, a cross at the bottom.

    Points far below all that matters are drawn as triangles at the bottom edge, so that one bad
    candidate does not flatten the rest.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.0))
        axes = figure.add_axes((0.085, 0.125, 0.66, 0.84))
        scored = [(i, f) for i, f in zip(ids, fitness, strict=True) if f is not None]
        values = np.array([f for _, f in scored])
        low, high = _window(values, [level.fitness[0] for level in levels])
        axes.set_ylim(low, high)
        last = max(ids, default=0)
        axes.set_xlim(-0.02 * last - 0.5, last + 0.02 * last + 0.5)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        for level in levels:
            axes.axhline(level.fitness[0], color=COLOURS[level.kind], linewidth=1.2, dashes=(5, 3))
        _points(axes, scored, low)
        failed = [i for i, f in zip(ids, fitness, strict=True) if f is None]
        _at_bottom(axes, failed, 0.02, marker="x", s=26, color=RED, linewidths=1.4, clip_on=False)
        notes = [(level.fitness[0], level.label, COLOURS[level.kind]) for level in levels]
        if scored:
            best = np.maximum.accumulate(values)
            steps = [*(i for i, _ in scored), last]
            axes.step(steps, [*best, best[-1]], where="post", color=BLUE, linewidth=2.0)
            notes.append((float(best[-1]), "best so far", BLUE))
        _right_labels(axes, notes)
        axes.set_xlabel("evaluation")
        axes.set_ylabel(f"{name} on the search items")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(length=0)
        return to_svg(figure, "convergence", f"{name} on the search items, per evaluation")


def _window(values: npt.NDArray[np.float64], levels: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of the fitness axis: all that is near the bulk or above, and a margin."""
    known = [value for value in levels if math.isfinite(value)]
    if values.size:
        quarter, half = np.quantile(values, [0.25, 0.5])
        floor = quarter - 3.0 * max(float(half - quarter), 1e-3)
        near = values[values >= floor]
        known += [float(near.min()), float(values.max())]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.07 * (high - low) or 0.5
    return low - 1.6 * margin, high + margin


def below(values: Sequence[float | None], levels: Sequence[float]) -> int:
    """Returns how many points `convergence` draws as triangles."""
    scored = np.array([value for value in values if value is not None])
    return int((scored < _window(scored, levels)[0]).sum())


def _points(axes: Axes, scored: Sequence[tuple[int, float]], low: float) -> None:
    """Draws candidates as dots, those below `low` as triangles at the bottom edge."""
    inside = np.array([point for point in scored if point[1] >= low]).reshape(-1, 2)
    if len(inside):
        size = 22.0 if len(scored) <= 300 else 8.0
        axes.scatter(inside[:, 0], inside[:, 1], s=size, color=BLUE, alpha=0.35, linewidths=0)
    below_low = [number for number, value in scored if value < low]
    _at_bottom(axes, below_low, 0.055, marker="v", s=24, color=BLUE, alpha=0.5, linewidths=0)


def _at_bottom(axes: Axes, ids: Sequence[int], height: float, **style: Any) -> None:
    """Marks evaluations at a height in the axes, whatever their fitness."""
    if ids:
        axes.scatter(ids, [height] * len(ids), transform=axes.get_xaxis_transform(), **style)


def _right_labels(axes: Axes, notes: Sequence[tuple[float, str, str]]) -> None:
    """Writes labels beside the right edge at their heights, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = 0.055
    heights: list[float] = []
    ordered = sorted(notes)
    for value, _, _ in ordered:
        height = (value - low) / (high - low)
        heights.append(max(height, heights[-1] + gap) if heights else height)
    if heights and heights[-1] > 1.0:  # push down from the top what does not fit
        heights[-1] = 1.0
        for index in range(len(heights) - 2, -1, -1):
            heights[index] = min(heights[index], heights[index + 1] - gap)
    for height, (value, label, colour) in zip(heights, ordered, strict=True):
        axes.text(
            1.015,
            height,
            f"{short(label, 26)}  {value:.3f}",
            transform=axes.transAxes,
            va="center",
            fontsize=9,
            color=colour,
        )


def front(
    fitness: Sequence[tuple[float, ...]],
    levels: Sequence[Level],
    names: Sequence[str],
    winner: tuple[float, ...] | None = None,
) -> str:
    """Returns the scatter of the first two objectives with the non-dominated candidates joined.

    Args:
        fitness: of every scored candidate, ``(objectives,)`` each, at least two.
        levels: reference models; those with a label are named.
        winner: fitness of the chosen candidate, ringed.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(8.6, 5.0))
        axes = figure.add_axes((0.085, 0.11, 0.78, 0.86))
        axes.grid(color=FAINT, linewidth=0.6)
        points = np.array([value[:2] for value in fitness], dtype=np.float64).reshape(-1, 2)
        best = points[_non_dominated(points)]
        candidates_and_front(axes, points, best[np.argsort(best[:, 0])])
        for level in levels:
            model_mark(axes, (level.fitness[0], level.fitness[1]), level.kind, level.label)
        if winner is not None:
            model_mark(axes, (winner[0], winner[1]), "evolved", "winner")
        axes.set_xlabel(f"{names[0]}, search items")
        axes.set_ylabel(f"{names[1]}, search items")
        known = np.array([level.fitness[:2] for level in levels]).reshape(-1, 2)
        axes.set_xlim(*_window(points[:, 0], known[:, 0].tolist()))
        axes.set_ylim(*_window(points[:, 1], known[:, 1].tolist()))
        axes.tick_params(length=0)
        return to_svg(figure, "front", f"{names[0]} against {names[1]}, front of the candidates")


def _non_dominated(points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Returns which rows no other row beats, ``(points,)``; higher is better in both columns."""
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    kept = np.zeros(len(points), dtype=np.bool_)
    highest = -math.inf
    for index in order:
        if points[index, 1] > highest:
            kept[index], highest = True, float(points[index, 1])
    return kept
