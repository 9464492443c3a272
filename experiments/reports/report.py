"""report.html: one page that tells a person what a run found, from the run's files alone."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

from experiments.reports.heat_map import heat_map
from experiments.reports.hull_section import hull_section
from experiments.reports.optimism_section import optimism_section
from experiments.reports.page import TableCell, figure, page, paragraph, section, table
from experiments.reports.privacy_section import privacy_section
from experiments.reports.score_section import score_section
from experiments.reports.search_section import failure_section, search_section
from experiments.reports.table import best_of, duration, fitness_text, verdict
from experiments.reports.walk_section import walk_section
from experiments.runs.files import Json, RunFiles
from experiments.runs.model_scores import ModelRow, models_of, shown_split
from experiments.runs.sources import source_and_hash
from merging.files import write_text

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
            search_section(files.history),
            walk_section(files),
            failure_section(files.history),
            _environment(files),
        )
    summary = files.summary
    models = models_of(summary)
    return page(
        name,
        _headline(summary, models),
        search_section(files.history, models, summary),
        walk_section(files),
        score_section(summary, models),
        hull_section(files.certificate),
        *([] if files.recipe is None else [_coefficients(files.recipe)]),
        optimism_section(summary, models),
        privacy_section(files.recipe),
        failure_section(files.history),
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
    result = verdict(summary)
    tone = {True: "verdict good", False: "verdict bad", None: "verdict"}[result.wins]
    return "\n".join(
        [
            f"<h1>{escape(str(summary['name']))}</h1>",
            paragraph(what),
            paragraph(result.text, tone),
            _cards(summary, models),
        ]
    )


def _cards(summary: Json, models: Sequence[ModelRow]) -> str:
    split = shown_split(models)
    data = "held-out" if split == "report" else "search"
    cards = []
    prefixes = {"static": "best static: ", "expert": "best expert: "}
    for kind in ("evolved", "in_hull", "static", "expert", "base"):
        model = best_of(models, kind, split)
        if model is not None:
            label = f"{prefixes.get(kind, '')}{model.name}, {data} fitness"
            cards.append((fitness_text(model.fitness(split)), label))
    if summary.get("optimism") is not None:
        label = "optimism (gain on the base, search minus held-out)"
        cards.append((f"{summary['optimism']:+.4f}", label))
    elements = (
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in cards
    )
    return f'<div class="cards">{"".join(elements)}</div>'


def _coefficients(recipe: Json) -> str:
    maps = coefficient_maps(recipe)
    if not maps:
        return section("Coefficients", paragraph("This recipe is not made of coefficients."))
    figures = []
    for knob, rows in maps.items():
        values = [value for row in rows.values() for value in row.values()]
        caption = (
            f"{knob}: {len(values)} value(s) from {min(values):.3f} to {max(values):.3f}, "
            f"{sum(v < 0 for v in values)} below 0, {sum(v > 1 for v in values)} above 1."
        )
        figures.append(figure(heat_map(knob, rows), caption))
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


def _facts(files: RunFiles, summary: Json) -> str:
    budget = ", ".join(f"{k} {v}" for k, v in summary["budget"].items() if v is not None)
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
        "time in evaluations": _time(files, summary["seconds"]),
        "peak memory": "not known" if memory is None else f"{memory / 1e9:.2f} GB",
        "device": f"{summary['device']}, {summary['dtype']}",
    }
    return section("Run", _pairs(facts))


def _time(files: RunFiles, seconds: float | None) -> str:
    if seconds is None:
        return "not kept: it tells of private items"
    timed = statistics.median(files.seconds.values()) if files.seconds else None
    return duration(seconds) + ("" if timed is None else f", median {timed:.2f} s each")


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
    return table([], [[key, TableCell(str(value), "text wrap")] for key, value in facts.items()])


def _rebuilding(files: RunFiles, name: str) -> str:
    where = shlex.quote(name)
    lines = []
    command = files.environment.get("command")
    if command:
        words = [*PurePath(command[0]).name.split(), *command[1:]]  # "evomerge search" is one
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
