"""The page of a contest: what was run, on what machine, and who won, in Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare.run import compare
from experiments.compare.text import markdown
from experiments.contests.plan import Entry
from experiments.reports.table import by_fitness, duration, fitness_text, number
from experiments.runs.files import read_json
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table
from experiments.runs.model_scores import ModelRow, models_of, tasks_of


def write_results(
    plan: Mapping[str, Any],
    entries: Sequence[Entry],
    failures: Mapping[Path, str],
    *,
    command: str,
    seconds: float,
) -> str:
    """Returns the page.

    Args:
        plan: the contest's options.
        entries: all runs.
        failures: run to reason, for those that did not finish.
        command: that was given.
        seconds: that this start of the command took.
    """
    parts = [f"# {plan['title']}", _facts(plan, entries, command, seconds)]
    targets = {world: _target(plan, entries, world) for world in plan["worlds"]}
    for table, content in plan["tables"].items():
        for world in dict.fromkeys(e.world for e in entries if e.table == table):
            own = [e for e in entries if (e.table, e.world) == (table, world)]
            parts.append(
                _table(content, plan["worlds"][world], world, own, failures, targets[world])
            )
    return "\n\n".join(parts) + "\n"


def _facts(plan: Mapping[str, Any], entries: Sequence[Entry], command: str, seconds: float) -> str:
    worked = sum(_worked_s(entry.run) for entry in entries)
    lines = [
        f"Written by `{command}`; do not edit by hand.",
        "",
        f"- machine: {machine()}",
        f"- runs: {len(entries)}, {plan['workers']} at a time; "
        f"{duration(worked)} in candidates' evaluations, {duration(seconds)} for this start of "
        "the command",
        f"- options of every run: `{shlex.join(plan['options'])}`",
        "- winner of a run: named on the selection items; reported: the held-out items, which no "
        "search reads",
    ]
    return "\n".join(lines)


def _table(
    content: Mapping[str, Any],
    world: Mapping[str, Any],
    name: str,
    entries: Sequence[Entry],
    failures: Mapping[Path, str],
    target: float | None,
) -> str:
    arms = [[arm, f"`{shlex.join(options)}`"] for arm, options in content["arms"].items()]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(e.seed for e in entries))
    parts = [
        f"## {content['title']}: {name}",
        f"{world['title']} Options `{shlex.join(world['options'])}`, seeds {seeds}.",
    ]
    lost = [e for e in entries if e.run in failures]
    if lost:
        parts.append(
            "\n".join(f"- failed: {e.arm}, seed {e.seed}: {failures[e.run]}" for e in lost)
        )
    finished = [e.run for e in entries if e.run not in failures]
    if finished and content.get("models"):
        parts.append(_models(finished[0]))
    elif finished:
        try:
            found = compare(finished, against=content.get("against"), target=target)
            parts.append(markdown(found))
        except ValueError as error:
            parts.append(f"Not compared: {error}.")
    options = markdown_table(["arm", "options"], arms)
    parts.append(f"<details><summary>Options of the arms</summary>\n\n{options}\n\n</details>")
    return "\n\n".join(parts)


def _target(plan: Mapping[str, Any], entries: Sequence[Entry], world: str) -> float | None:
    """Returns the search fitness of the world's best static merge, from a table of models."""
    for entry in entries:
        if entry.world == world and plan["tables"][entry.table].get("models"):
            statics = [m for m in _read_models(entry.run) if m.kind == "static"]
            fitness = [f for m in statics if (f := m.fitness("search")) is not None]
            return max((sum(f) / len(f) for f in fitness), default=None)
    return None


def _models(run: Path) -> str:
    """Returns base, experts and static merges as a table, from the best on held-out items down."""
    summary = read_json(run / "summary.json")
    models = [m for m in models_of(summary) if m.kind in ("base", "expert", "static")]
    tasks = tasks_of(summary)
    heads = ["model", "kind", "search fitness", "held-out fitness", *(t.metric for t in tasks)]
    rows = [
        [
            model.name,
            model.kind,
            fitness_text(model.fitness("search")),
            fitness_text(model.fitness("report")),
            *(number(model.score("report", task.metric)) for task in tasks),
        ]
        for model in reversed(by_fitness(models, "report"))
    ]
    return markdown_table(heads, rows, "llr")


def _read_models(run: Path) -> Sequence[ModelRow]:
    summary = run / "summary.json"
    return models_of(read_json(summary)) if summary.exists() else []


def _worked_s(run: Path) -> float:
    summary = run / "summary.json"
    return float(read_json(summary)["seconds"]) if summary.exists() else 0.0
