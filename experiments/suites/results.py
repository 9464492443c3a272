"""The page of a suite: what was run, on what machine, and who won, in Markdown."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.compare.run import compare
from experiments.compare.text import markdown
from experiments.reports.table import by_fitness, duration, fitness_text, number
from experiments.reports.walk_section import walk_sentences
from experiments.runs.files import read_json
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table
from experiments.runs.model_scores import ModelRow, models_of, tasks_of
from experiments.suites.plan import PlannedRun, Suite, SuiteTable
from merging.files import write_text


def results_page(
    suite: Suite,
    runs: Sequence[PlannedRun],
    failures: Mapping[Path, str],
    *,
    command: str,
    seconds: float,
) -> str:
    """Returns the page; `failures` are reasons by directory, `seconds` those of this start."""
    parts = [f"# {suite.title}", _facts(suite, runs, command, seconds)]
    for name, table in suite.tables.items():
        for setting in dict.fromkeys(run.setting for run in runs if run.table == name):
            compared = [run for run in runs if (run.table, run.setting) == (name, setting)]
            target = _target(suite, runs, setting)
            parts.append(_section(suite, table, compared, failures, target))
    return "\n\n".join(parts) + "\n"


def write_pages(paths: Sequence[Path], text: str) -> None:
    """Writes one page to several places and says where."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        print(f"results   {path}")


def _facts(suite: Suite, runs: Sequence[PlannedRun], command: str, seconds: float) -> str:
    worked = sum(_worked_s(run.directory) for run in runs)
    times = (
        f"{duration(worked)} in candidates' evaluations, {duration(seconds)} for this start of "
        "the command"
    )
    if any(run.private for run in runs):
        times = "how long private ones take is not written"
    trial = "**A trial (`fast=true`): too small to conclude anything.** " if suite.fast else ""
    lines = [
        f"{trial}Written by `{command}`; do not edit by hand.",
        "",
        f"- machine: {machine()}",
        f"- runs: {len(runs)}, {suite.workers} at a time; {times}",
        f"- options of every run: `{shlex.join(suite.options)}`",
        "- winner of a run: named on the selection items; reported: the held-out items, which no "
        "search reads",
    ]
    return "\n".join(lines)


def _section(
    suite: Suite,
    table: SuiteTable,
    runs: Sequence[PlannedRun],
    failures: Mapping[Path, str],
    target: float | None,
) -> str:
    """Returns a table's runs in one setting: failures, comparison, and what the variants are."""
    setting = suite.settings[runs[0].setting]
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))
    parts = [
        f"## {table.title}: {runs[0].setting}",
        f"{setting.title} Options `{shlex.join(setting.options)}`, seeds {seeds}.",
    ]
    lost = [
        f"- failed: {run.variant}, seed {run.seed}: "
        + ("why, the terminal says alone" if run.private else failures[run.directory])
        for run in runs
        if run.directory in failures
    ]
    if lost:
        parts.append("\n".join(lost))
    finished = [run.directory for run in runs if run.directory not in failures]
    if finished and table.models:
        parts.append(_models(finished[0]))
    elif finished:
        try:
            parts.append(markdown(compare(finished, against=table.against, target=target)))
        except ValueError as error:
            parts.append(f"Not compared: {error}.")
        parts += _walks([run for run in runs if run.directory not in failures])
    rows = [[name, f"`{shlex.join(options or ())}`"] for name, options in table.variants.items()]
    options = markdown_table(["variant", "options"], rows, "l")
    summary = "<details><summary>Options of the variants</summary>"
    parts.append(f"{summary}\n\n{options}\n\n</details>")
    return "\n\n".join(parts)


def _walks(runs: Sequence[PlannedRun]) -> list[str]:
    """Returns what the searches along paths were, signal or walk, a run of each variant."""
    first = {run.variant: run for run in reversed(runs) if not run.private}
    lines = [
        f"- {variant}, seed {run.seed}: {' '.join(said)}"
        for variant, run in reversed(first.items())
        if (said := walk_sentences(run.directory))
    ]
    return ["Signal and walk.\n\n" + "\n".join(lines)] if lines else []


def _target(suite: Suite, runs: Sequence[PlannedRun], setting: str) -> float | None:
    """Returns the search fitness of the setting's best static merge, from a table of models."""
    for run in runs:
        if run.setting == setting and suite.tables[run.table].models:
            models = [model for model in _read_models(run.directory) if model.kind == "static"]
            fitness = [f for model in models if (f := model.fitness("search")) is not None]
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
    return float(read_json(summary)["seconds"] or 0.0) if summary.exists() else 0.0
