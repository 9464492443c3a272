"""The hull certificate as a chart: the plane of best fit, and the way out of the hull."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator

from experiments.reports.svg import BLUE, COLOURS, FAINT, INK, STYLE, short, to_svg, winner_ring
from experiments.runs.files import Json
from experiments.runs.model_scores import IN_HULL
from merging.hull.plane import Point, outline

Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""

_SIZE = (9.6, 4.4)
_LEFT = (0.055, 0.115, 0.49, 0.86)
_RIGHT = (0.64, 0.115, 0.35, 0.86)
_ORDER = LinearSegmentedColormap.from_list("order", ["#a9c9e8", BLUE, "#05223f"])
_SPANS = {
    "hull": ("hull of the experts", BLUE, 3.2, "-"),
    "affine_span": ("affine span of the experts", COLOURS["expert"], 1.8, "-"),
    "linear_span": ("span of all task vectors", INK, 1.2, "--"),
}


def hull_chart(certificate: Json) -> str:
    """Returns the chart of a certificate whose winner has a place.

    Left: base, experts, their hull, static merges and the improvements along the search (pale
    first, dark last), projected on the plane that fits them best. A point within the drawn hull
    may still lie outside the true one, off the plane. Right: the distance of every improvement
    from hull and spans; what rounding alone could give is shaded.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=_SIZE)
        _plane(figure.add_axes(_LEFT), certificate)
        _distances(figure.add_axes(_RIGHT), certificate)
        return to_svg(figure, "hull", "base, experts, their hull and the path of the search")


def beyond_edge(certificate: Json) -> int:
    """Returns how many static merges lie too far away to be drawn."""
    low, high = _window(certificate)
    return sum(not _within(at, low, high) for at in _statics(certificate).values())


def _statics(certificate: Json) -> dict[str, Point]:
    points = certificate["plane"]["points"]
    return {name: tuple(at) for name, at in points.items() if name.startswith("static ")}


def _window(certificate: Json) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lower and upper ends of the axes: all but static merges, and a margin."""
    plane = certificate["plane"]
    others = [at for name, at in plane["points"].items() if name not in _statics(certificate)]
    known = np.array([plane["base"], *plane["experts"].values(), *others])
    low, high = known.min(0), known.max(0)
    shape = np.array([_SIZE[0] * _LEFT[2], _SIZE[1] * _LEFT[3]])
    half = 0.64 * shape * max(float(((high - low) / shape).max()), 1e-9)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _within(at: Point, low: np.ndarray, high: np.ndarray) -> bool:
    return bool((low <= at).all() and (at <= high).all())


def _plane(axes: Axes, certificate: Json) -> None:
    plane = certificate["plane"]
    low, high = _window(certificate)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.set_aspect("equal", adjustable="box")
    experts: dict[str, Point] = {name: tuple(at) for name, at in plane["experts"].items()}
    corners = outline(list(experts.values()))
    orange = COLOURS["expert"]
    axes.add_patch(Polygon(corners, closed=True, facecolor=orange, alpha=0.13, linewidth=0))
    axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor=orange, linewidth=1.0))
    for at in _statics(certificate).values():
        if _within(at, low, high):
            axes.scatter(*at, marker="s", s=20, color=COLOURS["static"], alpha=0.75, linewidths=0)
    _path(axes, [plane["points"][name] for name in certificate["path"]])
    named = [(name, at, orange, "D") for name, at in experts.items()]
    named.append(("base", tuple(plane["base"]), COLOURS["base"], "o"))
    if IN_HULL in plane["points"]:
        named.append((IN_HULL, tuple(plane["points"][IN_HULL]), COLOURS["in_hull"], "P"))
    for _, at, colour, marker in named:
        axes.scatter(*at, marker=marker, s=46, color=colour, linewidths=0, zorder=4)
    winner: Point = tuple(plane["points"][certificate["winner"]])
    winner_ring(axes, winner, zorder=5)
    labels = [(name, at, colour) for name, at, colour, _ in named]
    _labels(axes, [*labels, ("winner", winner, COLOURS["evolved"])])
    share = f"{plane['share']:.0%} of the variance"
    axes.set_xlabel(f"first and second component, {share}; unit: experts' mean distance")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)


def _path(axes: Axes, points: Sequence[Point]) -> None:
    at = np.array(points, np.float64).reshape(-1, 2)
    axes.plot(at[:, 0], at[:, 1], color=BLUE, linewidth=0.8, alpha=0.5, zorder=2)
    order = np.linspace(0, 1, len(at))
    axes.scatter(at[:, 0], at[:, 1], c=order, cmap=_ORDER, s=24, linewidths=0, zorder=3)


def _labels(axes: Axes, named: Sequence[tuple[str, Point, str]]) -> None:
    """Writes names beside their points, moved up or down where they would touch."""
    axes.apply_aspect()
    edge = axes.get_window_extent().x1
    taken: list[Box] = []
    size = 9.0
    tall = 1.25 * size * axes.figure.dpi / 72
    for name, at, colour in named:
        text = short(name, 22)
        x, y = axes.transData.transform(at)
        wide = 0.62 * size * len(text) * axes.figure.dpi / 72
        left = x + 12 if x + wide + 10 < edge else x - 12 - wide
        for shift in (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0):
            box = (left, y + shift * tall, left + wide, y + (shift + 1) * tall)
            if not any(_touch(box, other) for other in taken):
                break
        taken.append(box)
        across, up = axes.transAxes.inverted().transform((left, box[1]))
        axes.text(
            across, up, text, transform=axes.transAxes, va="center", fontsize=size, color=colour
        )


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _distances(axes: Axes, certificate: Json) -> None:
    points, path = certificate["points"], certificate["path"]
    ids = [int(name.rpartition(" ")[2]) for name in path]
    unit = certificate["expert_scale"] or 1.0
    highest = 0.0
    for span, (name, colour, width, dashes) in _SPANS.items():  # equal ones stay visible
        values = [points[step][span]["distance"] / unit for step in path]
        axes.plot(
            ids,
            values,
            dashes,
            marker="o",
            markersize=1.6 * width,
            color=colour,
            linewidth=width,
            label=name,
        )
        highest = max(highest, *values)
    floor = [points[step]["floor"] / unit for step in path]
    axes.fill_between(ids, 0, floor, color=FAINT, alpha=0.7, linewidth=0, label="rounding")
    axes.set_ylim(0, 1.35 * max(highest, *floor) or 1.0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_xlabel("evaluation")
    axes.set_ylabel("distance from …, unit as on the left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
