"""The hull certificate in the report: its sentences, its chart, and a row per point."""

from experiments.reports.hull_plot import beyond_edge, hull_chart
from experiments.reports.page import Row, TableCell, figure, paragraph, section, table
from experiments.runs.files import Json
from experiments.runs.model_scores import IN_HULL

_SPANS = ("hull", "hull_with_base", "affine_span", "linear_span")


def hull_section(certificate: Json | None) -> str:
    """Returns the section of a ``certificate.json``; empty text where a run has none."""
    if certificate is None:
        return ""
    parts = [paragraph(text) for text in certificate["sentences"]]
    if certificate["winner"] is not None:
        parts += [figure(hull_chart(certificate), _caption(certificate)), *_points(certificate)]
    return section("Beyond the hull", *parts)


def _caption(certificate: Json) -> str:
    text = (
        "Left: base, experts (orange) and their hull, static merges (purple squares) and every "
        "improvement of the search (blue, pale first and dark last) in the plane that fits base, "
        "experts and search best. A point inside the drawn hull may still lie outside the true "
        "one, off this plane. Right: how far each improvement lies from hull and spans."
    )
    hidden = beyond_edge(certificate)
    return f"{text} {hidden} static merge(s) lie too far away to be drawn." if hidden else text


def _points(certificate: Json) -> list[str]:
    head: Row = [
        "point",
        TableCell("base", hint="distance from the base"),
        TableCell("hull", hint="distance from the convex hull of the experts"),
        TableCell("hull with base", hint="distance from the convex hull of experts and base"),
        TableCell("affine span", hint="coefficients of any sign that sum to 1"),
        TableCell("linear span", hint="coefficients of any sign and sum"),
        TableCell("rounding", hint="what rounding alone could give"),
    ]
    rows = [_row(certificate, name) for name in _shown(certificate)]
    note = (
        "Distances in units of the experts' mean distance from the base; bold: more than rounding "
        "could give, so that the point lies outside."
    )
    return [paragraph(note, "muted"), table(head, rows, [0])]


def _shown(certificate: Json) -> list[str]:
    """Returns winner, other finalists, the best in the hull and the static merges."""
    others = [name for name in certificate["points"] if name.startswith("static ")]
    inside = [IN_HULL] if IN_HULL in certificate["points"] else []
    return list(dict.fromkeys([*certificate["finalists"], *inside, *others]))


def _row(certificate: Json, name: str) -> Row:
    point, unit = certificate["points"][name], certificate["expert_scale"] or 1.0
    cells = [
        TableCell(
            f"{point[span]['distance'] / unit:.4f}", "best" if point[span]["outside"] else ""
        )
        for span in _SPANS
    ]
    label = f"{name} (winner)" if name == certificate["winner"] else name
    from_base, floor = f"{point['from_base'] / unit:.4f}", f"{point['floor'] / unit:.1e}"
    return [label, from_base, *cells, floor]
