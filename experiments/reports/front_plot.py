"""Skill against what is limited: every candidate of a constrained search, and its front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure

from experiments.reports.page import figure
from experiments.reports.svg import FAINT, RED, STYLE, candidates_and_front, model_mark, to_svg
from experiments.runs.files import Json
from experiments.runs.model_scores import ModelRow
from search.constrained import FLOOR, BoundConstrained
from search.normalisation import Term
from search.objective import Objective


@dataclass(frozen=True)
class Point:
    """A model in the plane of skill and a limited metric.

    Args:
        label: name of a model that is no candidate.
        kind: ``base``, ``expert``, ``static``, ``in_hull``, ``evolved`` or ``candidate``.
        limited: value of the limited metric.
        skill: weighted mean of the skills, whatever the limits say.
    """

    label: str
    kind: str
    limited: float
    skill: float


def constraint_of(objective: Objective) -> dict[str, Any] | None:
    """Returns limits and skills of a constrained objective as JSON; None: it has no limits."""
    if not isinstance(objective, BoundConstrained):
        return None
    weights = objective.skill.weights or ()
    return {
        "limits": [asdict(limit) for limit in objective.limits],
        "skills": [
            {**asdict(term), "weight": weight}
            for term, weight in zip(objective.skill.terms, weights, strict=True)
        ],
    }


def beyond_limits(fitness: float, summary: Json | None) -> bool:
    """Whether a fitness of a constrained search says how far a limit is broken."""
    return bool((summary or {}).get("constraint")) and fitness < FLOOR


def constraint_figures(
    history: Sequence[Json], models: Sequence[ModelRow], summary: Json | None
) -> list[str]:
    """Returns a figure for every limit: skill against it; none without limits."""
    constraint = (summary or {}).get("constraint")
    if not constraint:
        return []
    figures = []
    for limit in constraint["limits"]:
        points = points_of(history, models, constraint["skills"], limit["key"])
        if points:
            side = "left" if limit["sign"] > 0 else "right"
            caption = (
                f"Skill against {limit['key']}. Each dot is one candidate, the line joins those "
                "that no other beats in both; diamonds are base, experts, static merges and best "
                f"in hull, the ring is the winner. Allowed is what lies {side} of the red line."
            )
            figures.append(figure(_chart(points, limit), caption))
    return figures


def points_of(
    history: Sequence[Json], models: Sequence[ModelRow], skills: Sequence[Json], key: str
) -> list[Point]:
    """Returns all that has both a skill and a value of `key` on the search items."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = [
        ("", "candidate", line["scores"]) for line in history if line.get("same_as") is None
    ]
    rows += [(m.name, m.kind, m.scores["search"].scores) for m in models if "search" in m.scores]
    keys = [key, *(skill["key"] for skill in skills)]
    points = []
    for label, kind, scores in rows:
        values = [scores.get(name) for name in keys]
        if all(value is not None and math.isfinite(value) for value in values):
            points.append(Point(label, kind, float(scores[key]), _skill(scores, skills)))
    return points


def _skill(scores: Mapping[str, float], skills: Sequence[Json]) -> float:
    """Returns the weighted mean that the search maximised, without looking at the limits."""
    names = ("task", "key", "sign", "base", "span")
    terms = (
        Term(**{name: skill[name] for name in names}, cap=skill.get("cap")) for skill in skills
    )
    return math.fsum(
        skill["weight"] * term.gain(scores[term.key])
        for skill, term in zip(skills, terms, strict=True)
    )


def front(points: Sequence[Point], sign: float) -> list[Point]:
    """Returns the points that no other beats in skill and in the limited metric, by the latter.

    Args:
        sign: 1 where less of the limited metric is better, -1 where more is.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (sign * p.limited, -p.skill)):
        if not kept or point.skill > kept[-1].skill:
            kept.append(point)
    return kept


def _chart(points: Sequence[Point], limit: Json) -> str:
    candidates = [point for point in points if point.kind == "candidate"]
    with rc_context(STYLE):
        drawing = Figure(figsize=(8.6, 5.0))
        axes = drawing.add_axes((0.085, 0.11, 0.78, 0.86))
        axes.grid(color=FAINT, linewidth=0.6)
        axes.axvline(limit["bound"], color=RED, linewidth=1.2)
        best = front(candidates, limit["sign"])
        candidates_and_front(axes, _array(candidates), _array(best))
        for point in points:
            if point.kind != "candidate":
                model_mark(axes, (point.limited, point.skill), point.kind, point.label)
        axes.set_ylim(*_ends([point.skill for point in points]))
        axes.set_xlabel(f"{limit['key']}, search items")
        axes.set_ylabel("skill, search items")
        axes.tick_params(length=0)
        name = f"front-{limit['key']}"
        return to_svg(drawing, name, f"skill against {limit['key']}, front of the candidates")


def _array(points: Sequence[Point]) -> npt.NDArray[np.float64]:
    return np.array([(point.limited, point.skill) for point in points]).reshape(-1, 2)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an axis that hold the better half and what is near it."""
    low, half, high = np.quantile(np.array(values), [0.0, 0.5, 1.0]).tolist()
    low = max(low, half - 3 * max(high - half, 1e-3))
    margin = 0.06 * max(high - low, 1e-3)
    return low - margin, high + margin
