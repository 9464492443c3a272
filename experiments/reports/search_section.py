"""The report's sections on the search: charts of its candidates, and why some failed."""

from collections.abc import Sequence

from experiments.reports import charts
from experiments.reports.charts import Level
from experiments.reports.front_plot import beyond_limits, constraint_figures
from experiments.reports.page import Row, TableCell, figure, paragraph, section, table
from experiments.reports.table import best_of
from experiments.runs.files import Json
from experiments.runs.model_scores import ModelRow, fitness_of


def search_section(
    history: Sequence[Json], models: Sequence[ModelRow] = (), summary: Json | None = None
) -> str:
    """Returns the charts of all candidates; without models and summary while a run goes on."""
    fitness = [fitness_of(line["fitness"]) for line in history]
    objectives = max((len(value) for value in fitness if value is not None), default=1)
    if objectives > 1:
        return section("Search", _front_figure(fitness, models, summary, objectives))
    values = [value[0] if value is not None else None for value in fitness]
    levels = [level for level in _levels(models) if not beyond_limits(level.fitness[0], summary)]
    chart = charts.convergence([line["id"] for line in history], values, levels)
    caption = "Each dot is one candidate, the line the best so far; dashed: the models to beat."
    if failed := values.count(None):
        caption += f" Crosses at the bottom: {failed} failed."
    if any("items" in line for line in history):
        caption += (
            " Every generation was scored on random items of its own: only candidates of one "
            "generation can be compared, and the best so far is so by luck too."
        )
    if asked := sorted(line["asked"] for line in history if line.get("asked") is not None):
        caption += (
            f" {len(asked)} of {len(history)} candidates were dropped in a race: their fitness is "
            f"an estimate from {asked[0]} to {asked[-1]} search items."
        )
    if charts.below(values, [level.fitness[0] for level in levels]):
        caption += " Triangles at the bottom: too far below to be drawn in place."
    limits = constraint_figures(history, models, summary)
    return section("Search", figure(chart, caption), *limits)


def _levels(models: Sequence[ModelRow]) -> list[Level]:
    """Returns base, best expert, best static merge and best point in the hull, search items."""
    levels = []
    for kind in ("base", "expert", "static", "in_hull"):
        model = best_of(models, kind, "search")
        fitness = model.fitness("search") if model is not None else None
        if model is not None and fitness is not None:
            levels.append(Level(model.label, kind, fitness))
    return levels


def _front_figure(
    fitness: Sequence[tuple[float, ...] | None],
    models: Sequence[ModelRow],
    summary: Json | None,
    objectives: int,
) -> str:
    names = [f"objective {index + 1}" for index in range(objectives)]
    others = [
        Level("", model.kind, value)
        for model in models
        if model.kind != "evolved" and (value := model.fitness("search")) is not None
    ]
    winner = best_of(models, "evolved", "search")
    chart = charts.front(
        [value for value in fitness if value is not None],
        [*others, *_levels(models)],
        list((summary or {}).get("objectives") or names),
        winner.fitness("search") if winner is not None else None,
    )
    more = f"; the other {objectives - 2} objectives are not drawn" if objectives > 2 else ""
    caption = (
        "Each dot is one candidate, the line joins those that no other beats; diamonds are base "
        f"(grey), experts (orange) and static merges (purple), the best of each kind named{more}. "
        "Candidates far from all of these may lie outside."
    )
    return figure(chart, caption)


def failure_section(history: Sequence[Json]) -> str:
    """Returns why candidates failed, the most frequent reason first."""
    reasons: dict[str, list[int]] = {}
    for line in history:
        if line["fitness"] is None:
            reasons.setdefault(line["failure"] or "no reason recorded", []).append(line["id"])
    if not reasons:
        return section("Failures", paragraph("No candidate failed."))
    rows: list[Row] = []
    for reason, ids in sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        shown = ", ".join(map(str, ids[:12])) + (", …" if len(ids) > 12 else "")
        rows.append([TableCell(reason, "wrap"), str(len(ids)), TableCell(shown, "text")])
    return section("Failures", table(["reason", "times", TableCell("candidates", "text")], rows))
