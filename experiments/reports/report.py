"""report.html: one page that tells a person what a run found, from the run's files alone."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

from evaluators.panel import Split
from experiments.reports import charts
from experiments.reports.charts import Level
from experiments.reports.front_plot import beyond_limits, constraint_figures
from experiments.reports.heat_map import heat_map
from experiments.reports.hull_section import hull_section
from experiments.reports.optimism_section import optimism_section
from experiments.reports.page import TableCell, figure, page, paragraph, section, table
from experiments.reports.privacy_section import privacy_section
from experiments.reports.table import (
    best_of,
    best_value,
    by_fitness,
    duration,
    fitness_text,
    number,
    verdict,
)
from experiments.runs.files import Json, RunFiles
from experiments.runs.model_scores import (
    ModelRow,
    TaskColumn,
    fitness_of,
    models_of,
    shown_split,
    tasks_of,
)
from experiments.runs.sources import source_and_hash
from merging.files import write_text

_SPLITS: Mapping[Split, str] = {
    "report": "Held-out items: read once, after the search",
    "search": "Search items: they ranked the candidates",
}
_ENDS = {
    "evaluations": "all evaluations of the budget are used",
    "seconds": "the time of the budget is used",
    "target": "the target fitness was reached",
    "exhausted": "the strategy had nothing more to ask",
    "stalled": "the strategy only asked what had been evaluated",
    "privacy budget": "the privacy budget does not pay for another generation",
}


def write_report(run: Path) -> Path:
    """Writes ``run/report.html`` in one piece and returns its path.

    An unfinished run gets a page of what is known so far, which says so and how to go on.

    Raises:
        FileNotFoundError: `run` is no run directory; says what it lacks.
        ValueError: a file of the run is damaged; names it.
    """
    path = run / "report.html"
    write_text(path, render_report(RunFiles.read(run)))
    return path


def render_report(files: RunFiles) -> str:
    """Returns the page as text; the same files give the same text."""
    name = files.path.resolve().name
    if files.summary is None:
        return page(
            f"{name} (unfinished)",
            _unfinished(files, name),
            section("Search", *_search_charts(files.history, (), None)),
            _failures(files.history),
            _environment(files),
        )
    summary = files.summary
    models = models_of(summary)
    return page(
        name,
        _headline(summary, models),
        section("Search", *_search_charts(files.history, models, summary)),
        _scores(summary, models),
        hull_section(files.certificate),
        *([] if files.recipe is None else [_coefficients(files.recipe)]),
        optimism_section(summary, models),
        privacy_section(files.recipe),
        _failures(files.history),
        _facts(files, summary),
        _environment(files),
        _rebuilding(files, name),
    )


def _unfinished(files: RunFiles, name: str) -> str:
    scored = [line for line in files.history if line["fitness"] is not None]
    best = max((tuple(line["fitness"]) for line in scored), default=None)
    state = f"{len(files.history)} candidates so far, best fitness {fitness_text(best)}."
    remedy = "Start the same command again to continue it; this page is then written anew."
    return (
        f"<h1>{escape(name)}</h1>"
        + paragraph(f"This run has not finished: {state} {remedy}", "verdict bad")
        + paragraph("Scores on held-out items exist only once a run has finished.", "muted")
    )


def _headline(summary: Json, models: Sequence[ModelRow]) -> str:
    experts = [model.name for model in models if model.kind == "expert"]
    what = (
        f"{summary['method']} merge of {len(experts)} experts ({', '.join(experts)}), evolved "
        f"with {summary['strategy']} in {summary['evaluations']} evaluations, seed "
        f"{summary['seed']}."
    )
    found = verdict(summary)
    tone = {True: "verdict good", False: "verdict bad", None: "verdict"}[found.wins]
    return "\n".join(
        [
            f"<h1>{escape(str(summary['name']))}</h1>",
            paragraph(what),
            paragraph(found.text, tone),
            _cards(summary, models),
        ]
    )


def _cards(summary: Json, models: Sequence[ModelRow]) -> str:
    split = shown_split(models)
    data = "held-out" if split == "report" else "search"
    cards = []
    kinds = {"evolved": "", "in_hull": "", "static": "best static: "}
    kinds |= {"expert": "best expert: ", "base": ""}
    for kind, prefix in kinds.items():
        model = best_of(models, kind, split)
        if model is not None:
            cards.append(
                (fitness_text(model.fitness(split)), f"{prefix}{model.name}, {data} fitness")
            )
    if summary.get("optimism") is not None:
        cards.append((f"{summary['optimism']:+.4f}", "optimism (search minus held-out)"))
    inside = (
        f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in cards
    )
    return f'<div class="cards">{"".join(inside)}</div>'


def _search_charts(
    history: Sequence[Json], models: Sequence[ModelRow], summary: Json | None
) -> list[str]:
    fitness = [fitness_of(line["fitness"]) for line in history]
    objectives = max((len(value) for value in fitness if value is not None), default=1)
    if objectives > 1:
        return [_front_chart(fitness, models, summary, objectives)]
    values = [value[0] if value is not None else None for value in fitness]
    levels = [each for each in _levels(models) if not beyond_limits(each.fitness[0], summary)]
    chart = charts.convergence([line["id"] for line in history], values, levels)
    caption = "Each dot is one candidate, the line the best so far; dashed: the models to beat."
    failed = values.count(None)
    if failed:
        caption += f" Crosses at the bottom: {failed} failed."
    if any("items" in line for line in history):
        caption += (
            " Every generation was scored on random items of its own: only candidates of one "
            "generation can be compared, and the best so far is so by luck too."
        )
    caption += _raced(history)
    if charts.below(values, [level.fitness[0] for level in levels]):
        caption += " Triangles at the bottom: too far below to be drawn in place."
    return [figure(chart, caption), *constraint_figures(history, models, summary)]


def _raced(history: Sequence[Json]) -> str:
    """Returns a sentence on the candidates that were not asked all search items, if any."""
    asked = sorted(line["asked"] for line in history if line.get("asked") is not None)
    if not asked:
        return ""
    return (
        f" {len(asked)} of {len(history)} candidates were dropped in a race: their fitness is an "
        f"estimate from {asked[0]} to {asked[-1]} search items."
    )


def _levels(models: Sequence[ModelRow]) -> list[Level]:
    """Returns base, best expert, best static merge and best point in the hull, search items."""
    levels = []
    for kind in ("base", "expert", "static", "in_hull"):
        model = best_of(models, kind, "search")
        fitness = model.fitness("search") if model is not None else None
        if model is not None and fitness is not None:
            levels.append(
                Level(
                    f"{kind} {model.name}" if kind in ("expert", "static") else model.name,
                    kind,
                    fitness,
                )
            )
    return levels


def _front_chart(
    fitness: Sequence[tuple[float, ...] | None],
    models: Sequence[ModelRow],
    summary: Json | None,
    objectives: int,
) -> str:
    names = [f"objective {index + 1}" for index in range(objectives)]
    if summary is not None:
        names = list(summary.get("objectives") or names)
    others = [
        Level("", model.kind, value)
        for model in models
        if model.kind != "evolved" and (value := model.fitness("search")) is not None
    ]
    winner = best_of(models, "evolved", "search")
    chart = charts.front(
        [value for value in fitness if value is not None],
        [*others, *_levels(models)],
        names,
        winner.fitness("search") if winner is not None else None,
    )
    more = f"; the other {objectives - 2} objectives are not drawn" if objectives > 2 else ""
    caption = (
        "Each dot is one candidate, the line joins those that no other beats; diamonds are base "
        f"(grey), experts (orange) and static merges (purple), the best of each kind named{more}. "
        "Candidates far from all of these may lie outside."
    )
    return figure(chart, caption)


def _scores(summary: Json, models: Sequence[ModelRow]) -> str:
    splits = [split for split in _SPLITS if any(split in model.scores for model in models)]
    tasks = {split: tasks_of(summary, split) for split in splits}
    rows = by_fitness(models[::-1], shown_split(models))[::-1]
    parts = [
        f"<h3>{_SPLITS[each]}</h3>" + _score_table(rows, tasks[each], each) for each in splits
    ]
    note = (
        "Main metric of every task in its own units; arrows say which way is better, bold is the "
        "best of a column. Fitness is what the search maximised, computed on each split by itself."
    )
    if any(m.evidence(split, t.metric) for m in models for split in splits for t in tasks[split]):
        note += " In brackets: the 95 % interval over items, and what chance gives."
    return section("Scores", paragraph(note, "muted"), *parts)


def _score_table(rows: Sequence[ModelRow], tasks: Sequence[TaskColumn], split: Split) -> str:
    arrows = {"minimize": ("↓", "lower is better"), "maximize": ("↑", "higher is better")}
    head = [
        TableCell("model"),
        TableCell("kind", "text"),
        TableCell("fitness ↑", hint="higher is better"),
    ]
    for task in tasks:
        arrow, hint = arrows[task.direction]
        head.append(TableCell(f"{task.metric}\u00a0{arrow}".replace("/", "/\u200b"), "wrap", hint))
    best = {task.metric: best_value(rows, task, split) for task in tasks}
    fits = [fitness for model in rows if (fitness := model.fitness(split)) is not None]
    top = max(fits) if fits and len(fits[0]) == 1 else None
    body = []
    for model in rows:
        cells = [
            TableCell(model.name),
            TableCell(model.kind, "text"),
            _fitness_cell(model, split, top),
        ]
        for task in tasks:
            score = model.score(split, task.metric)
            bold = score is not None and score == best[task.metric]
            said = model.evidence(split, task.metric)
            text = number(score) if score is None or not said else f"{number(score)} ({said})"
            cells.append(TableCell(text, "best" if bold else ""))
        body.append(cells)
    evolved = [index for index, model in enumerate(rows) if model.kind == "evolved"]
    return table(head, body, evolved)


def _fitness_cell(model: ModelRow, split: Split, top: tuple[float, ...] | None) -> TableCell:
    fitness = model.fitness(split)
    if fitness is not None:
        return TableCell(fitness_text(fitness), "best" if fitness == top else "")
    failure = model.failure(split) or ""
    return (
        TableCell("-", hint=failure)
        if split not in model.scores
        else TableCell("failed", "failed", failure)
    )


def _coefficients(recipe: Json) -> str:
    maps = coefficient_maps(recipe)
    if not maps:
        return section("Coefficients", paragraph("This recipe is not made of coefficients."))
    figures = []
    for knob, rows in maps.items():
        values = [value for row in rows.values() for value in row.values()]
        figures.append(
            figure(
                heat_map(knob, rows),
                f"{knob}: {len(values)} value(s) from {min(values):.3f} to {max(values):.3f}, "
                f"{sum(v < 0 for v in values)} below 0, {sum(v > 1 for v in values)} above 1.",
            )
        )
    note = "What the winner's recipe holds: a row per group of parameters, a column per expert."
    return section("Coefficients", paragraph(note, "muted"), *figures)


def coefficient_maps(recipe: Json) -> dict[str, dict[str, dict[str, float]]]:
    """Returns knob to group to expert to value; a knob that all experts share has one column."""
    groups: Mapping[str, Mapping[str, Any]] = recipe.get("coefficients") or {}
    maps: dict[str, dict[str, dict[str, float]]] = {}
    for group, knobs in groups.items():
        for knob, value in knobs.items():
            row = value if isinstance(value, Mapping) else {"all experts": value}
            maps.setdefault(knob, {})[group] = {k: float(v) for k, v in row.items()}
    return maps


def _failures(history: Sequence[Json]) -> str:
    reasons: dict[str, list[int]] = {}
    for line in history:
        if line["fitness"] is None:
            reasons.setdefault(line["failure"] or "no reason recorded", []).append(line["id"])
    if not reasons:
        return section("Failures", paragraph("No candidate failed."))
    rows = []
    for reason, ids in sorted(reasons.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        shown = ", ".join(map(str, ids[:12])) + (", …" if len(ids) > 12 else "")
        rows.append(
            [TableCell(reason, "wrap"), TableCell(str(len(ids))), TableCell(shown, "text")]
        )
    head = [TableCell("reason"), TableCell("times"), TableCell("candidates", "text")]
    return section("Failures", table(head, rows))


def _facts(files: RunFiles, summary: Json) -> str:
    budget = ", ".join(f"{k} {v}" for k, v in summary["budget"].items() if v is not None)
    timed = statistics.median(files.seconds.values()) if files.seconds else None
    memory = summary.get("peak_memory_bytes")
    facts = {
        "run": summary["run"],
        **_checkpoints(files.recipe),
        "strategy": summary["strategy"],
        "method": summary["method"],
        "space": summary["space"],
        "seed": summary["seed"],
        "budget": budget,
        "ended because": _ENDS.get(summary["stop"], summary["stop"]),
        "evaluations": f"{summary['evaluations']} ({summary['failures']} failed), and "
        f"{summary['repeats']} repeats that cost nothing",
        "item evaluations": f"{summary['item_evaluations']:,}",
        "time in evaluations": duration(summary["seconds"])
        + ("" if timed is None else f", median {timed:.2f} s each"),
        "peak memory": "not known" if memory is None else f"{memory / 1e9:.2f} GB",
        "device": f"{summary['device']}, {summary['dtype']}",
    }
    return section("Run", _pairs(facts))


def _checkpoints(recipe: Json | None) -> dict[str, str]:
    """Returns base and experts with the beginnings of their hashes."""
    if recipe is None:
        return {}
    experts = {f"expert {name}": expert for name, expert in recipe["experts"].items()}
    return {
        role: "{}, SHA-256 {}…".format(*source_and_hash(checkpoint))
        for role, checkpoint in {"base": recipe["base"], **experts}.items()
    }


def _environment(files: RunFiles) -> str:
    environment = dict(files.environment)
    environment.pop("command", None)
    packages = environment.pop("packages", None) or {}
    facts = {**environment, **{k: v for k, v in packages.items() if v is not None}}
    if not facts:
        return ""
    shown = {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in facts.items()}
    return section("Machine and versions", _pairs({k: v for k, v in shown.items() if v != ""}))


def _pairs(facts: Mapping[str, Any]) -> str:
    rows = [
        [TableCell(str(key)), TableCell(str(value), "text wrap")] for key, value in facts.items()
    ]
    return table([], rows)


def _rebuilding(files: RunFiles, name: str) -> str:
    where = shlex.quote(name)
    lines = []
    command = files.environment.get("command")
    if command:
        words = [PurePath(command[0]).name, *command[1:]]
        lines += ["# this run, as it was started", shlex.join(words), ""]
    lines += [
        "# the same weights, bit for bit, from the base and the experts",
        f"evomerge rebuild {where}/recipe.json --out rebuilt-model",
        "",
        "# this page, from the run's files",
        f"evomerge report {where}",
    ]
    note = "The last two lines are for a shell in the directory that holds the run's own."
    return section(
        "Rebuild", f"<pre>{escape(chr(10).join(lines))}</pre>", paragraph(note, "muted")
    )
