"""How charts look, marks that several share, and a figure as an SVG element without addresses."""

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform

INK, MUTED, FAINT = "#1f2933", "#66727f", "#d9dee3"
BLUE, RED, GREEN, ORANGE, PURPLE = "#0b63b0", "#c2361f", "#1b7f5c", "#c77700", "#7a4fa3"
MAGENTA = "#b5257e"
COLOURS = {"base": MUTED, "expert": ORANGE, "static": PURPLE, "in_hull": MAGENTA, "evolved": GREEN}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.axisbelow": True,
}


def short(text: str, length: int) -> str:
    """Returns `text`, cut in the middle where it is longer than `length`."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def model_mark(axes: Axes, at: tuple[float, float], kind: str, label: str) -> None:
    """Draws a model with its name: the winner as a ring, others as diamonds."""
    if kind == "evolved":
        winner_ring(axes, at)
    else:
        axes.scatter(*at, marker="D", s=34, color=COLOURS[kind], linewidths=0)
    axes.annotate(
        "winner" if kind == "evolved" else short(label, 30),
        at,
        xytext=(8, 5),
        textcoords="offset points",
        fontsize=9,
        color=COLOURS[kind],
    )


def winner_ring(axes: Axes, at: tuple[float, float], zorder: float = 1) -> None:
    """Draws a ring around the winner."""
    axes.scatter(*at, s=150, facecolors="none", edgecolors=GREEN, linewidths=2.0, zorder=zorder)


def candidates_and_front(
    axes: Axes, points: npt.NDArray[np.float64], front: npt.NDArray[np.float64]
) -> None:
    """Draws candidates as dots, ``(points, 2)``, and joins those of the front, in its order."""
    axes.scatter(points[:, 0], points[:, 1], s=22, color=BLUE, alpha=0.3, linewidths=0)
    axes.plot(front[:, 0], front[:, 1], color=BLUE, marker="o", markersize=5, linewidth=1.5)


def beside(axes: Axes, y: float, text: str, colour: str, transform: Transform) -> None:
    """Writes `text` beside the right edge, at height `y` of `transform`."""
    axes.text(1.01, y, text, transform=transform, va="center", fontsize=9, color=colour)


def to_svg(figure: Figure, name: str, title: str) -> str:
    """Returns the figure as an SVG element for use inside HTML; equal figures, equal bytes.

    Args:
        figure: drawn under `STYLE`.
        name: begins every id, so that several elements can share a page.
        title: what a screen reader says.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", name)
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    out = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(  # tight: labels that lie outside of the figure are not cut off
            out, format="svg", metadata=nothing, transparent=True, bbox_inches="tight"
        )
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows them; no address in the page
    text = text.replace("*{", "svg *{")  # its style must not reach the rest of the page
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    head = re.match(r'<svg width="([\d.]+)pt" height="[^"]*"', text)
    assert head is not None
    width = float(head[1]) * 96 / 72
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    # on a narrow screen the figure scrolls, and its text stays legible
    style = f"width:100%;min-width:{min(width, 540):.0f}px;max-width:{width:.0f}px;height:auto"
    return f'<svg role="img" aria-label="{label}" style="{style}"{text[head.end() :]}'
