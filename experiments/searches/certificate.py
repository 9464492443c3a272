"""certificate.json: proof of where a search ended as seen from its experts, and what it gave."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from evaluators.requests import is_out_of_memory
from experiments.runs.model_scores import IN_HULL
from experiments.runs.progress import ProgressBar
from experiments.runs.shown import shown
from experiments.searches.gain import held_out_gain
from experiments.searches.outcome import SearchOutcome
from merging.files import write_text
from merging.grouping import Whole
from merging.hull.gram import Gram, measure
from merging.hull.hull import Position, Span, position
from merging.hull.plane import best_plane
from merging.method import MergeError
from merging.plan import uniform_plan
from merging.weights import Weights
from search.loop.history import Record

log = logging.getLogger(__name__)

PATH_POINTS = 24  # most improvements of a search that are measured
_SPANS = ("hull", "hull_with_base", "affine_span", "linear_span")


def write_certificate(outcome: SearchOutcome) -> dict[str, Any]:
    """Writes ``certificate.json`` and returns its content.

    All points are measured in float32, before the cast to the saved dtype; each has the distance
    that rounding alone could give it as its ``floor`` (see `merging.hull.hull.position`).
    """
    inside, report = outcome.inside, outcome.report
    candidates = _candidates(outcome)
    try:
        points, held = _weights(outcome, candidates), outcome.references.ingredients.held
        with ProgressBar(len(points) * len(held.names), "certificate", "tensor") as bar:
            gram = measure(
                held, {name: shown(one, lambda _: bar.update()) for name, one in points.items()}
            )
    except (MergeError, RuntimeError, MemoryError) as error:
        # a stack of layers has other tensors than its experts; all points may be too much to hold
        if not isinstance(error, MergeError) and not is_out_of_memory(error):
            raise
        log.info("no certificate: %s", error)
        certificate: dict[str, Any] = {"winner": None, "reason": str(error)}
    else:
        certificate = _placed(gram, outcome, candidates)
        certificate["winner"] = label(outcome.finalists[0].id)
    certificate["gain"] = None
    if inside is not None:
        evolved = None if report is None else report["evolved"]
        certificate["gain"] = held_out_gain(outcome.run, outcome.objective, evolved, inside.report)
        certificate["in_hull"] = {
            "evaluations": inside.evaluations,
            "search": inside.winner.search.tolist(),
        }
    certificate["sentences"] = sentences(certificate)
    write_text(outcome.run / "certificate.json", json.dumps(certificate, indent=2) + "\n")
    return certificate


def label(candidate: int) -> str:
    """Returns what a candidate is called among the points."""
    return f"candidate {candidate}"


def _candidates(outcome: SearchOutcome) -> dict[int, Record]:
    """Returns winner, finalists and the improvements along the search, by id in its order."""
    by_id = {record.id: record for record in outcome.result.records}
    chosen = {finalist.id for finalist in outcome.finalists}
    chosen |= {record.id for record in improvements(outcome.result.records)}
    return {number: by_id[number] for number in sorted(chosen)}


def improvements(records: Sequence[Record], most: int = PATH_POINTS) -> list[Record]:
    """Returns the records that were the best so far when they were scored, first and last too.

    Several objectives: the best mean of them. Of more than `most`, evenly spread ones.
    """
    best, better = -math.inf, []
    for record in sorted(records, key=lambda record: record.id):
        if record.fitness is not None and float(np.mean(record.fitness)) > best:
            best = float(np.mean(record.fitness))
            better.append(record)
    if len(better) <= most:
        return better
    return [better[i] for i in np.linspace(0, len(better) - 1, most).round().astype(int)]


def _weights(outcome: SearchOutcome, candidates: Mapping[int, Record]) -> dict[str, Weights]:
    """Returns every point's weights, computed when read; candidates first, in their order."""
    space, pool = outcome.space, outcome.references.ingredients.held
    points: dict[str, Weights] = {
        label(number): space.decode(space.from_json(record.genome))
        for number, record in candidates.items()
    }
    scored = {m.name for m in outcome.search.values() if m.kind == "static" and m.failure is None}
    for name, method in outcome.references.baselines.items():
        if name in scored:
            plan = uniform_plan(method, Whole(), pool)
            points[f"static {name}"] = plan.weights(pool.reading(), dtype=torch.float32)
    if outcome.inside is not None:
        points[IN_HULL] = outcome.inside.plan.weights(pool, dtype=torch.float32)
    return points


def _placed(
    gram: Gram, outcome: SearchOutcome, candidates: Mapping[int, Record]
) -> dict[str, Any]:
    """Returns where every point lies, and the plane that fits base, experts and search best."""
    path = [label(record.id) for record in improvements(outcome.result.records)]
    fitted = [label(number) for number in candidates]
    plane = best_plane(gram, [*fitted, *({IN_HULL} & set(gram.points))])
    points = {name: _position(position(gram, name)) for name in gram.points}
    for number, record in candidates.items():
        assert record.fitness is not None
        points[label(number)]["search"] = record.fitness.tolist()
    return {
        "expert_scale": gram.expert_scale,
        "points": points,
        "path": path,
        "finalists": [label(finalist.id) for finalist in outcome.finalists],
        "plane": asdict(plane),
    }


def _position(point: Position) -> dict[str, Any]:
    return {
        "from_base": point.from_base,
        "floor": point.floor,
        "experts": dict(point.experts),
        **{name: _span(getattr(point, name), point) for name in _SPANS},
    }


def _span(span: Span, point: Position) -> dict[str, Any]:
    """Returns the distance in the weights' own unit, of the point's way, and of an expert's."""
    return {
        "distance": span.distance,
        "of_own_distance": _share(span.distance, point.from_base),
        "of_expert_distance": _share(span.distance, point.expert_scale),
        "outside": span.outside,
        "coefficients": dict(span.coefficients),
        "residual": span.residual,
    }


def _share(distance: float, whole: float) -> float | None:
    return distance / whole if whole > 0 else None


def sentences(certificate: Mapping[str, Any]) -> list[str]:
    """Returns what the certificate proves, in one sentence, and what it gave in another."""
    return [_where(certificate), *_gain(certificate)]


def _where(certificate: Mapping[str, Any]) -> str:
    if certificate["winner"] is None:
        return f"The winner has no place among the experts: {certificate['reason']}."
    point = certificate["points"][certificate["winner"]]
    if not point["hull"]["outside"]:
        shares = point["hull"]["coefficients"]
        mix = " + ".join(f"{w:.2f} {name}" for name, w in shares.items() if w >= 0.005)
        return (
            f"The winner lies inside the experts' convex hull (at {mix}); distances below "
            f"{point['floor']:.2g} could be rounding."
        )
    names = {"affine_span": "their affine span", "linear_span": "the span of the task vectors"}
    others = [f"{_beside(point, key)} {name}" for key, name in names.items()]
    inside = point["hull_with_base"]["outside"]
    base = "" if inside else "; it lies within the hull of experts and base"
    return (
        f"The winner lies outside the experts' convex hull by {_of_own(point, 'hull')} of its "
        f"distance from the base ({', '.join(others)}{base}); rounding alone could give "
        f"{_share(point['floor'], point['from_base']) or 0:.1g}."
    )


def _beside(point: Mapping[str, Any], span: str) -> str:
    return f"{_of_own(point, span)} outside" if point[span]["outside"] else "inside"


def _of_own(point: Mapping[str, Any], span: str) -> str:
    """Returns a distance as a share of the point's own from the base."""
    share = point[span]["of_own_distance"]
    return "all" if share is None else f"{share:.2g}"


def _gain(certificate: Mapping[str, Any]) -> list[str]:
    """Returns what leaving the hull gave on the held-out items; nothing without a companion."""
    gain = certificate["gain"]
    if gain is None:
        return []
    evaluations = certificate["in_hull"]["evaluations"]
    head = f"The best point found inside the hull in as many evaluations ({evaluations})"
    if gain["difference"] is None:
        return [f"{head} cannot be compared: {gain['reason']}."]
    text = (
        f"{head} has held-out fitness {gain['inside']:.4f}, the winner {gain['winner']:.4f}: "
        f"a gain of {gain['difference']:+.4f}"
    )
    interval = gain["interval"]
    if interval is None:
        return [f"{text}, without an interval: {gain['reason']}."]
    text += (
        f", {interval['level']:.0%} interval {interval['low']:+.4f} to {interval['high']:+.4f} "
        f"(paired over {interval['items']} items, p = {interval['p']:.2g})."
    )
    return [text]
