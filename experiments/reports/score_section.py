"""The report's section of scores: every model on held-out and on search items."""

from collections.abc import Mapping, Sequence

from evaluators.split import Split
from experiments.reports.cut_offs import cut_off_lines
from experiments.reports.page import Row, TableCell, paragraph, section, table
from experiments.reports.table import best_value, by_fitness, fitness_text, number
from experiments.runs.files import Json
from experiments.runs.item_counts import count_rows, too_few
from experiments.runs.model_scores import ModelRow, TaskColumn, shown_split, tasks_of

_TITLES: Mapping[Split, str] = {
    "report": "Held-out items: read once, after the search",
    "search": "Search items: they ranked the candidates",
}
_ARROWS = {"minimize": ("↓", "lower is better"), "maximize": ("↑", "higher is better")}


def score_section(summary: Json, models: Sequence[ModelRow]) -> str:
    """Returns a table per split, the models from best to worst on the first of them."""
    splits = [split for split in _TITLES if any(split in model.scores for model in models)]
    tasks = {split: tasks_of(summary, split) for split in splits}
    rows = by_fitness(models[::-1], shown_split(models))[::-1]
    parts = [f"<h3>{_TITLES[s]}</h3>" + _score_table(rows, tasks[s], s) for s in splits]
    note = (
        "Main metric of every task in its own units; arrows say which way is better, bold is the "
        "best of a column. Fitness is what the search maximised, on every split in the units that "
        "base and experts gave it on the search items."
    )
    if any(m.evidence(split, t.metric) for m in models for split in splits for t in tasks[split]):
        note += " In brackets: the 95 % interval over items, and what chance gives."
    counts = summary.get("items") or {}
    said = [*(summary.get("overlap") or ()), *(summary.get("notes") or ()), *too_few(counts)]
    said = [*cut_off_lines(summary), *(f"{line[:1].upper()}{line[1:]}." for line in said)]
    notes = [paragraph(line, "muted") for line in said]
    return section("Scores", paragraph(note, "muted"), *parts, *_items(counts), *notes)


def _items(counts: Mapping[str, Json]) -> list[str]:
    if not counts:
        return []
    head, *rows = count_rows(counts)
    return ["<h3>Items: found, and how many of them stand where</h3>" + table(head, rows)]


def _score_table(rows: Sequence[ModelRow], tasks: Sequence[TaskColumn], split: Split) -> str:
    head: list[TableCell | str] = ["model", TableCell("kind", "text")]
    head.append(TableCell("fitness ↑", hint="higher is better"))
    for task in tasks:
        arrow, hint = _ARROWS[task.direction]
        head.append(TableCell(f"{task.metric}\u00a0{arrow}".replace("/", "/\u200b"), "wrap", hint))
    best = {task.metric: best_value(rows, task, split) for task in tasks}
    fits = [fitness for model in rows if (fitness := model.fitness(split)) is not None]
    top = max(fits) if fits and len(fits[0]) == 1 else None
    body: list[Row] = [
        [
            model.name,
            TableCell(model.kind, "text"),
            _fitness_cell(model, split, top),
            *(_score_cell(model, split, task.metric, best[task.metric]) for task in tasks),
        ]
        for model in rows
    ]
    evolved = [index for index, model in enumerate(rows) if model.kind == "evolved"]
    return table(head, body, evolved)


def _fitness_cell(model: ModelRow, split: Split, top: tuple[float, ...] | None) -> TableCell:
    fitness = model.fitness(split)
    if fitness is not None:
        return TableCell(fitness_text(fitness), "best" if fitness == top else "")
    failure = model.failure(split) or ""
    if split in model.scores:
        return TableCell("failed", "failed", failure)
    return TableCell("-", hint=failure)


def _score_cell(model: ModelRow, split: Split, metric: str, best: float | None) -> TableCell:
    score, evidence = model.score(split, metric), model.evidence(split, metric)
    text = number(score) + (f" ({evidence})" if evidence and score is not None else "")
    return TableCell(text, "best" if score is not None and score == best else "")
