"""The tasks of a mergekit-evolve file, and what it says of their items and prompts."""

from collections.abc import Mapping
from typing import Any

from experiments.mergekit_evolve.genome import simple
from experiments.mergekit_evolve.values import Entry, EvolveError, value

KEYS = (
    *("limit", "num_fewshot", "shuffle", "apply_chat_template", "fewshot_as_multiturn"),
    "task_search_path",
)
TASK_KEYS = ("name", "weight", "metric")
_LOWER = (
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "brier_score",
    "ter",
)


def read_tasks(content: Entry, notes: list[str]) -> list[dict[str, Any]]:
    """Returns a file's ``tasks`` as those of one line.

    Args:
        notes: gets a sentence for every key that has no counterpart.

    Raises:
        EvolveError: a key is missing, or has another value than mergekit-evolve takes.
    """
    tasks = content["tasks"]
    if not isinstance(tasks, list) or not tasks:
        raise EvolveError(f"tasks: expected a list of names, got {tasks!r}")
    shared, seen = _shared(content, notes), set[str]()
    entries = []
    for task in tasks:
        entry = {**_task(task, notes), **shared}
        if entry["task"] in seen:  # by another metric
            entry["name"] = simple(f"{entry['task']}-{entry['metric']}")
        seen.add(entry["task"])
        entries.append(entry)
    return entries


def _task(task: Any, notes: list[str]) -> dict[str, Any]:
    given: Any = {"name": task} if isinstance(task, str) else task
    if not isinstance(given, Mapping) or not value(given, "name", str, "", "tasks: "):
        raise EvolveError(f"tasks: {task!r} names no task of lm-eval")
    where = f"tasks: {given['name']}: "
    notes += [
        f"{where}{key}: no key of mergekit-evolve; left out"
        for key in given
        if key not in TASK_KEYS
    ]
    metric, _, answers = value(given, "metric", str, "acc,none", where).partition(",")
    weight = value(given, "weight", float, 1.0, where)
    if weight > 0 and metric in _LOWER:
        notes.append(
            f"{where}metric: {metric} is lowered, which in mergekit-evolve takes a negative weight"
        )
    sign = "-" if weight < 0 else ""  # checked where the task is read
    return {
        "task": given["name"],
        "metric": sign + (metric if answers in ("", "none") else f"{metric}@{answers}"),
        **({} if weight == 1 else {"weight": float(abs(weight))}),
    }


def _shared(content: Entry, notes: list[str]) -> dict[str, Any]:
    """Returns what all tasks of a file have in common."""
    chat = value(content, "apply_chat_template", bool, None)
    given = {
        "search": value(content, "limit", int, None),
        "num_fewshot": value(content, "num_fewshot", int, None),
        "apply_chat_template": chat,
        "fewshot_as_multiturn": value(content, "fewshot_as_multiturn", bool, None),
        "include_path": value(content, "task_search_path", str, None),
    }
    if given["search"] is not None:
        notes.append(
            f"limit: {given['search']} search items of each task are drawn by seed, not the first "
            "ones; those of the second look and the held-out ones are others"
        )
    if "shuffle" in content:
        notes.append("shuffle: items are drawn by seed, whatever the file says")
    if chat is False and given["fewshot_as_multiturn"]:
        notes.append("fewshot_as_multiturn: without a chat template there are no turns")
        given["fewshot_as_multiturn"] = None
    options = {key: each for key, each in given.items() if each is not None}
    return {"apply_chat_template": None, **options}  # null: where the tokenizer has a template
