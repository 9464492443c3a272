"""README.md of a merged model: where it comes from, how it was made, what it scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from experiments.reports.card_head import (
    HeldOutFacts,
    Parents,
    eval_results,
    front_matter,
    on_the_hub,
)
from experiments.reports.cut_offs import cut_off_lines
from experiments.reports.privacy_section import privacy_words
from experiments.reports.table import by_fitness, fitness_text, number, verdict
from experiments.runs.files import Json
from experiments.runs.item_counts import count_rows
from experiments.runs.model_scores import models_of, shown_split, tasks_of
from experiments.runs.sources import source_and_hash

_ROWS = 60
"""Most groups whose coefficients the card lists; the recipe has all."""


_PLANS = {
    "path": "a path through all weights, from a start along ranked noise",
    "factors": "a path through the factors of LoRA adapters, from a start along ranked noise",
    "displaced": "a merge moved so that the search began at another point",
    "around": "a merge, more or less of what it changed and of every expert",
    "lineage": "a tree of crossovers and mutations of the experts' task vectors",
    "layer_stack": "layers of base and experts, stacked anew",
}


_UNKNOWN = Parents()


def model_card(
    summary: Json, recipe: Json, parents: Parents = _UNKNOWN, held_out: HeldOutFacts | None = None
) -> str:
    """Returns the card of an evolved merge: Markdown with a YAML head.

    Args:
        held_out: what is known of the held-out items; None: there are none, and no results.
    """
    experts = ", ".join(recipe["experts"])
    made = (
        f"It was found by {summary['strategy']} in {summary['evaluations']} "
        f"evaluations ({summary['failures']} failed), seed {summary['seed']}, without gradients."
    )
    known = (held_out.datasets if held_out is not None else {}).values()
    parts = [
        front_matter(
            recipe,
            parents,
            str(summary["run"]),
            _results(summary, held_out),
            [dataset for dataset, *_ in known],
        ),
        f"# {summary['name']}: an evolved merge of {experts}",
        verdict(summary).text,
        _lineage(recipe),
        _method(recipe, made),
        _coefficients(recipe),
        _scores(summary),
        _rebuilding(),
        _privacy(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def static_card(recipe: Json, parents: Parents = _UNKNOWN) -> str:
    """Returns the card of a merge that was not searched for and has no scores."""
    parts = [
        front_matter(recipe, parents, ""),
        f"# A merge of {', '.join(recipe['experts'])}",
        _lineage(recipe),
        _method(recipe, "The coefficients were given, not searched for; no score was taken."),
        _coefficients(recipe),
        _rebuilding(),
        _privacy(recipe),
    ]
    return "\n\n".join(parts) + "\n"


def _results(summary: Json, held_out: HeldOutFacts | None) -> list[EvalResult]:
    """Returns the winner's held-out scores for the head; none where it has none."""
    cells = [m.scores.get("report") for m in models_of(summary) if m.kind == "evolved"]
    if held_out is None or not cells or cells[0] is None:
        return []
    return eval_results(tasks_of(summary, "report"), cells[0].scores, held_out)


def _lineage(recipe: Json) -> str:
    rows = [["base", "", *source_and_hash(recipe["base"])]]
    rows += [["expert", name, *source_and_hash(e)] for name, e in recipe["experts"].items()]
    head = ["role", "name", "source", "SHA-256 of the weights begins"]
    text = "## Lineage\n\n" + _table(head, rows)
    if left_out := on_the_hub(recipe)[1]:
        names = " ".join(", ".join(left_out).split())
        text += f"\n\nOf no known id on the Hub, so not among `base_model`: {names}."
    return text


def _method(recipe: Json, made: str) -> str:
    dtype = recipe.get("dtype") or "each parameter's own in the base"
    return "\n".join(
        [
            "## Method",
            "",
            f"{made} Merging is computed in float32 and cast once.",
            "",
            *_plan(recipe),
            f"- saved as: {dtype}",
            f"- made by: {recipe['created_by']}",
        ]
    )


def _plan(recipe: Json) -> list[str]:
    """Returns what the plan is made of, a line each."""
    lines = []
    if "method" in recipe:
        method, options = _class(recipe["method"])
        grouping, group_options = _class(recipe["grouping"])
        lines += [
            f"- method: {method}{options}",
            f"- parameters share coefficients by: {grouping}{group_options}",
        ]
    elif plan := _PLANS.get(str(recipe.get("kind"))):
        lines.append(f"- plan: {plan}; `recipe.json` holds every step")
    if isinstance(recipe.get("noise"), Mapping):
        noise, options = _class(recipe["noise"])
        lines.append(f"- noise: {noise}{options}, drawn again from seeds")
    return lines


def _class(description: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the class of a method, noise or grouping, and its options in brackets."""
    options = dict(description)
    name = str(options.pop("_target_", None) or options.pop("kind")).rpartition(".")[2]
    listed = ", ".join(f"{key} {value}" for key, value in options.items())
    return name, f" ({listed})" if listed else ""


def _coefficients(recipe: Json) -> str:
    """Returns one row per group, one column per knob and expert, as far as they fit a page."""
    groups: Mapping[str, Mapping[str, Any]] = recipe.get("coefficients") or {}
    if not groups:
        return "## Coefficients\n\nThis recipe is not made of coefficients."
    cells = {group: dict(_flat(knobs)) for group, knobs in groups.items()}
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    rows = [
        [group, *(number(row.get(column), 3) for column in columns)]
        for group, row in cells.items()
    ]
    text = "## Coefficients\n\n" + _table(["group", *columns], rows[:_ROWS])
    if len(rows) > _ROWS:
        text += f"\n\nThe first {_ROWS} of {len(rows)} groups; `recipe.json` has all."
    return text


def _flat(knobs: Mapping[str, Any]) -> list[tuple[str, float]]:
    flat = []
    for knob, value in knobs.items():
        if isinstance(value, Mapping):
            flat += [(f"{knob} {expert}", float(number)) for expert, number in value.items()]
        else:
            flat.append((knob, float(value)))
    return flat


def _scores(summary: Json) -> str:
    models = models_of(summary)
    split = shown_split(models)
    tasks = tasks_of(summary, split)
    arrows = {"minimize": "↓", "maximize": "↑"}
    head = ["model", "kind", "fitness ↑", *(f"{t.metric} {arrows[t.direction]}" for t in tasks)]
    rows = []
    for model in by_fitness(models[::-1], split)[::-1]:
        scores = [number(model.score(split, task.metric)) for task in tasks]
        name = f"**{model.name}**" if model.kind == "evolved" else model.name
        rows.append([name, model.kind, fitness_text(model.fitness(split)), *scores])
    data = (
        "On held-out items, which the search never saw."
        if split == "report"
        else "On the search items, which chose the winner: there are no held-out scores."
    )
    parts = ["## Scores", data, _table(head, rows), *_items(summary), *cut_off_lines(summary)]
    return "\n\n".join(parts)


def _items(summary: Json) -> list[str]:
    if not (counts := summary.get("items")):
        return []
    first, *rows = count_rows(counts)
    return ["Items of every task:", _table(first, rows)]


def _rebuilding() -> str:
    return "\n".join(
        [
            "## Rebuild",
            "",
            "From the same checkpoints `recipe.json` gives the same weights, bit for bit:",
            "",
            "```",
            "evomerge rebuild recipe.json --out DIR",
            "```",
            "",
            "`--source NAME=PATH` says where one of them lies that is found under no such name.",
        ]
    )


def _privacy(recipe: Json) -> str:
    words = privacy_words(recipe)
    if len(words) == 1:
        return f"## Privacy\n\n{words[0]}"
    lines = [f"- {' '.join(sentence.split())}" for sentence in words]
    return "\n".join(["## Privacy", "", *lines, "", "`recipe.json` and `privacy.json` have all."])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
