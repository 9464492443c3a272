"""The result as a plain text table for the terminal, and as one honest sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.split import Split
from experiments.reports.cut_offs import cut_off_lines
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.files import Json
from experiments.runs.model_scores import ModelRow, TaskColumn, models_of, shown_split, tasks_of

KINDS = ("base", "expert", "static", "in_hull", "evolved")
Fitness = tuple[float, ...]


def number(value: float | None, digits: int = 4) -> str:
    """Returns a score with `digits` decimals; ``-`` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def fitness_text(fitness: Sequence[float] | None) -> str:
    """Returns a fitness as text, several objectives separated by blanks."""
    return "-" if fitness is None else " ".join(number(value) for value in fitness)


def duration(seconds: float) -> str:
    """Returns a time as people say it.

    Example:
        >>> duration(42.4), duration(200), duration(9000), duration(200000)
        ('42 s', '3 min', '2.5 h', '2.3 days')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def best_value(models: Sequence[ModelRow], task: TaskColumn, split: Split) -> float | None:
    """Returns the best score of a column in its metric's direction; None for an empty column."""
    scores = [model.score(split, task.metric) for model in models]
    values = [score for score in scores if score is not None]
    if not values:
        return None
    return min(values) if task.direction == "minimize" else max(values)


def by_fitness(models: Sequence[ModelRow], split: Split) -> list[ModelRow]:
    """Returns `models` from worst to best; those without a fitness first, by their search fitness.

    Equals stay as they came.
    """
    return sorted(models, key=lambda model: (_total(model, split), _total(model, "search")))


def _total(model: ModelRow, split: Split) -> float:
    fitness = model.fitness(split)
    return float("-inf") if fitness is None else sum(fitness)


def best_of(models: Sequence[ModelRow], kind: str, split: Split) -> ModelRow | None:
    """Returns the model of a kind that is fittest on the search items; None: there is none.

    Of those with a fitness on `split`, which is not what they are chosen by: the best of many
    readings there would be better than it is. Where search items are private, `split` decides.
    """
    scored = [model for model in models if model.kind == kind and model.fitness(split) is not None]
    return max(scored, key=lambda m: (_total(m, "search"), _total(m, split)), default=None)


def unread_statics(models: Sequence[ModelRow], split: Split) -> list[ModelRow]:
    """Returns the static merges with search scores that were not asked the items of `split`."""
    return [
        model
        for model in models
        if model.kind == "static" and split not in model.scores and model.failure("search") is None
    ]


@dataclass(frozen=True)
class Verdict:
    """Whether evolution was worth it.

    Args:
        text: one sentence with the numbers and the data they come from.
        wins: beats (or, with several objectives, dominates) every static merge that has a score;
            None: there is nothing to compare.
    """

    text: str
    wins: bool | None = None


def verdict(summary: Json) -> Verdict:
    """Returns how the evolved merge compares with the static merges, on which data."""
    models = models_of(summary)
    split = shown_split(models)
    data = "held-out data" if split == "report" else "the search items, which chose it,"
    winner = best_of(models, "evolved", split)
    fitness = winner.fitness(split) if winner is not None else None
    if fitness is None:
        evolved = [model for model in models if model.kind == "evolved"]
        reason = evolved[0].failure(split) if evolved else "the run has none"
        return Verdict(f"The evolved merge has no score on {data.rstrip(',')}: {reason}.")
    statics = {m.name: m.fitness(split) for m in models if m.kind == "static"}
    scored = {name: static for name, static in statics.items() if static is not None}
    note = _missing(models, split, len(statics), len(scored))
    best = best_of(models, "static", split)
    if best is None:
        return Verdict(f"The evolved merge has no static merge to be compared with{note}.")
    wins = all(dominates(fitness, static) for static in scored.values())
    if len(fitness) == 1:
        text = _one_objective(fitness, scored, best, data)
    else:
        text = _many_objectives(fitness, scored, data)
    return Verdict(f"The evolved merge {text}{note}.", wins)


def _missing(models: Sequence[ModelRow], split: Split, statics: int, scored: int) -> str:
    """Returns how many static merges have no fitness, and why, to be added to a sentence."""
    unread = len(unread_statics(models, split))
    failed = statics - scored - unread
    reasons = _reasons(models, split) if failed else []
    note = f"; {failed} of {statics} static merges failed ({'; '.join(reasons)})" if failed else ""
    if unread:
        note += f"; {unread} of {statics} were not read there (baselines.report=all reads them)"
    return note


def _reasons(models: Sequence[ModelRow], split: Split) -> list[str]:
    """Returns which static merges failed and why, without details and remedies."""
    alike: dict[str, list[str]] = {}
    for model in models:
        if model.kind == "static" and (why := _failure(model, split)):
            head, *rest = why.partition(": ")[0].split() or [why]
            own = head.lower() == model.name.replace("_", "")  # Slerp merges exactly 2 experts
            alike.setdefault(" ".join(rest if own else [head, *rest]), []).append(model.name)
    return [f"{', '.join(names)}: {why}" for why, names in alike.items()]


def _failure(model: ModelRow, split: Split) -> str | None:
    """Returns why a model has no score on `split`; one that failed before was not asked there."""
    cell = model.scores.get(split) or model.scores.get("search")
    return None if cell is None else cell.failure


def _one_objective(
    winner: Fitness, statics: Mapping[str, Fitness], best: ModelRow, data: str
) -> str:
    """Returns how a winner compares with `best`, which was so before `data` was read."""
    name, fitness, level = best.name, winner[0], statics[best.name][0]
    others = [each for each, (value,) in statics.items() if each != name and value >= fitness]
    where = "there" if best.fitness("search") is None else "on the search items"
    verb = "beats" if fitness > level else "only equals" if fitness == level else "loses to"
    relation, of_best = f"{verb} {name}, the best static merge {where},", ""
    if fitness > level and not others:
        relation, of_best = "beats every static merge", f" of {name}"
    text = (
        f"{relation} on {data} with fitness {number(fitness)} against {number(level)}{of_best} "
        f"({fitness - level:+.4f})"
    )
    joint = "but" if fitness > level else "and"
    return f"{text}, {joint} does not beat {', '.join(others)}" if others else text


def _many_objectives(winner: Fitness, statics: Mapping[str, Fitness], data: str) -> str:
    unbeaten = [name for name, static in statics.items() if not dominates(winner, static)]
    tail = f" (not {', '.join(unbeaten)})" if unbeaten else ""
    beaten = len(statics) - len(unbeaten)
    return f"dominates {beaten} of {len(statics)} static merges on {data.rstrip(',')}{tail}"


def dominates(one: Fitness, other: Fitness) -> bool:
    """True where `one` is at least as good on every objective and better on one."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other


def table(summary: Json) -> str:
    """Returns the held-out scores of every model as lines of plain text.

    Rows: the base, the experts, the static merges that were read, from worst to best, the best
    point inside the hull, and last, under a rule, the evolved merge. Columns: the main metric of
    every task, then fitness (higher is better). ``*`` marks the best value of a column. Below
    stand `verdict`, which tells of all other static merges, what was cut off, what the hull
    certificate says, and the run's notes. A run without held-out items shows its search scores
    and says so. Scores that state a chance or a 95 % interval (memorization) have a line of their
    own with them, model by model.
    """
    models = models_of(summary)
    split = shown_split(models)
    tasks = tasks_of(summary, split)
    shown = [_of_kind(models, kind, split) for kind in KINDS]
    rows = [model for kind in shown for model in kind]
    columns = [
        ["", "better", *(model.label for model in rows)],
        *(_score_column(rows, task, split) for task in tasks),
        ["fitness ", "higher ", *_fitness_column(rows, split)],
    ]
    title = "held-out items" if split == "report" else "search items (there are no held-out items)"
    rules = (2, 2 + len(rows) - len(shown[-1]))
    certificate = (summary.get("certificate") or {}).get("sentences") or []
    return "\n".join(
        [
            f"Scores on {title}{_units(summary)}",
            "",
            *_aligned(columns, rules),
            "",
            *_evidence(rows, tasks, split),
            verdict(summary).text,
            *cut_off_lines(summary),
            *certificate,
            *privacy_lines(summary.get("privacy")),
            *(f"note: {line}" for line in summary.get("notes") or ()),
        ]
    )


def _units(summary: Json) -> str:
    """Returns where a normalised fitness has its 0 or 1: items of other splits may be harder."""
    normalised = [t for t in summary.get("terms") or () if t["base"] or t["span"] != 1]
    if any(term.get("ends") for term in normalised):
        return " (fitness 0 is the base on the search items)"
    return " (fitness 1 is each task's best expert on the search items)" if normalised else ""


def _evidence(rows: Sequence[ModelRow], tasks: Sequence[TaskColumn], split: Split) -> list[str]:
    """Returns a paragraph for every main metric that states chance or interval."""
    lines = []
    for task in tasks:
        evidence = [(model.label, model.evidence(split, task.metric)) for model in rows]
        listed = "; ".join(f"{name} {text}" for name, text in evidence if text)
        lines += [f"{task.metric} with 95 % intervals: {listed}."] if listed else []
    return [*lines, ""] if lines else []


def _of_kind(models: Sequence[ModelRow], kind: str, split: Split) -> list[ModelRow]:
    same = [model for model in models if model.kind == kind]
    if kind == "static":
        same = [model for model in same if model.fitness(split) is not None]
    return by_fitness(same, split) if kind in ("static", "evolved") else same


def _score_column(rows: Sequence[ModelRow], task: TaskColumn, split: Split) -> list[str]:
    best = best_value(rows, task, split)
    scores = [model.score(split, task.metric) for model in rows]
    cells = [
        number(score) + ("*" if score is not None and score == best else " ") for score in scores
    ]
    better = "lower" if task.direction == "minimize" else "higher"
    return [f"{task.metric} ", f"{better} ", *cells]


def _fitness_column(rows: Sequence[ModelRow], split: Split) -> list[str]:
    values = [model.fitness(split) for model in rows]
    single = [value[0] for value in values if value is not None and len(value) == 1]
    best = (max(single),) if single else None
    return [fitness_text(v) + ("*" if v is not None and v == best else " ") for v in values]


def _aligned(columns: Sequence[Sequence[str]], rules: Sequence[int]) -> list[str]:
    """Returns the rows of a table as lines, with a rule above each row that `rules` counts."""
    widths = [max(map(len, column)) for column in columns]
    first, *others = [
        [cell.ljust(width) if index == 0 else cell.rjust(width) for cell in column]
        for index, (column, width) in enumerate(zip(columns, widths, strict=True))
    ]
    lines = ["  ".join(cells).rstrip() for cells in zip(first, *others, strict=True)]
    for row in sorted(rules, reverse=True):
        lines.insert(row, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return lines
