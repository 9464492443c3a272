"""The result as a plain text table for the terminal, and as one honest sentence."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.run_files import Json, Model, Split, Task, models_of, tasks_of

KINDS = ("base", "expert", "static", "evolved")
Fitness = tuple[float, ...]


def number(value: float | None, digits: int = 4) -> str:
    """Returns a score with `digits` decimals; ``-`` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def fitness_text(fitness: Sequence[float] | None) -> str:
    """Returns a fitness as text, several objectives separated by blanks."""
    return "-" if fitness is None else " ".join(number(value) for value in fitness)


def best_value(models: Sequence[Model], task: Task, split: Split) -> float | None:
    """Returns the best score of a column in its metric's direction; None for an empty column."""
    scores = [model.score(split, task.metric) for model in models]
    values = [score for score in scores if score is not None]
    if not values:
        return None
    return min(values) if task.direction == "minimize" else max(values)


def by_fitness(models: Sequence[Model], split: Split) -> list[Model]:
    """Returns `models` from worst to best; those without a fitness first, equals as they came."""

    def rank(model: Model) -> float:
        fitness = model.fitness(split)
        return float("-inf") if fitness is None else sum(fitness)

    return sorted(models, key=rank)


def best_of(models: Sequence[Model], kind: str, split: Split) -> Model | None:
    """Returns the fittest model of a kind; None where no model of that kind has a fitness."""
    scored = [model for model in models if model.kind == kind and model.fitness(split) is not None]
    return by_fitness(scored, split)[-1] if scored else None


def verdict(summary: Json) -> str:
    """Returns one sentence: does evolved beat every static merge on held-out data, by how much."""
    models = models_of(summary)
    winner = best_of(models, "evolved", "report")
    if winner is None:
        evolved = [model for model in models if model.kind == "evolved"]
        reason = evolved[0].failure("report") if evolved else "the run has none"
        return f"The evolved merge has no held-out score: {reason}."
    statics = [model for model in models if model.kind == "static"]
    rivals = {model.name: model.fitness("report") for model in statics}
    scored = {name: fitness for name, fitness in rivals.items() if fitness is not None}
    missing = len(rivals) - len(scored)
    note = f"; {missing} of {len(rivals)} static merges have no score" if missing else ""
    if not scored:
        return f"The evolved merge has no static merge to compare with{note}."
    fitness = winner.fitness("report")
    assert fitness is not None
    if len(fitness) > 1:
        fronts = [model.fitness("report") for model in models if model.kind == "evolved"]
        return _front_verdict([front for front in fronts if front], scored, note)
    return _single_verdict(fitness[0], {name: value[0] for name, value in scored.items()}, note)


def _single_verdict(mine: float, rivals: dict[str, float], note: str) -> str:
    name = max(rivals, key=lambda rival: rivals[rival])
    best = rivals[name]
    relation = "beats every static merge"
    if mine <= best:
        relation = (
            "only equals the best static merge" if mine == best else "loses to a static merge"
        )
    return (
        f"The evolved merge {relation} on held-out data: fitness {number(mine)} against "
        f"{number(best)} of {name} ({mine - best:+.4f}){note}."
    )


def _front_verdict(front: list[Fitness], rivals: dict[str, Fitness], note: str) -> str:
    beaten = [
        name for name, rival in rivals.items() if any(dominates(own, rival) for own in front)
    ]
    left = [name for name in rivals if name not in beaten]
    tail = f", but not {', '.join(left)}" if left else ""
    return (
        f"The evolved merges ({len(front)} on the front) dominate {len(beaten)} of {len(rivals)} "
        f"static merges on held-out data{tail}{note}."
    )


def dominates(one: Fitness, other: Fitness) -> bool:
    """True where `one` is at least as good on every objective and better on one."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and one != other


def render_table(summary: Json) -> str:
    """Returns the held-out scores of every model as text of plain ASCII lines.

    Rows: the base, the experts, the static merges from worst to best, and last, under a rule, the
    evolved merge. Columns: the main metric of every task, then fitness (higher is better). ``*``
    marks the best value of a column. The last line is `verdict`.
    """
    models, tasks = models_of(summary), tasks_of(summary)
    better = ["lower" if task.direction == "minimize" else "higher" for task in tasks]
    heads = [["", *(task.metric for task in tasks), "fitness"], ["better", *better, "higher"]]
    rows = [[head[0], *(f"{cell} " for cell in head[1:])] for head in heads]  # a column for "*"
    best = {task.metric: best_value(models, task, "report") for task in tasks}
    top = max((f for f in (model.fitness("report") for model in models) if f), default=None)
    shown = [_sorted_kind(models, kind) for kind in KINDS]
    for model in (model for kind in shown for model in kind):
        cells = [
            _starred(number(model.score("report", task.metric)), model, task, best[task.metric])
            for task in tasks
        ]
        fitness = model.fitness("report")
        star = "*" if fitness is not None and len(fitness) == 1 and fitness == top else " "
        label = model.name if model.kind == "evolved" else f"{model.kind} {model.name}"
        name = "base" if model.kind == "base" else label
        rows.append([name, *cells, fitness_text(fitness) + star])
    return "\n".join(
        [*_aligned(rows, rules=(2, len(rows) - len(shown[-1]))), "", verdict(summary)]
    )


def _sorted_kind(models: Sequence[Model], kind: str) -> list[Model]:
    same = [model for model in models if model.kind == kind]
    return by_fitness(same, "report") if kind in ("static", "evolved") else same


def _starred(text: str, model: Model, task: Task, best: float | None) -> str:
    score = model.score("report", task.metric)
    return text + ("*" if score is not None and score == best else " ")


def _aligned(rows: Sequence[Sequence[str]], rules: tuple[int, ...]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for index, row in enumerate(rows):
        if index in rules:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
