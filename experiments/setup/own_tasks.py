"""What ``tasks=[...]`` stands for: the evaluators of every panel, and weights in the objective."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from evaluators.tasks.data import columns
from experiments.runs.choices import texts
from experiments.runs.errors import UserError

_PANELS = {
    "search_on": "search",
    "select_on": "selection",
    "report_on": "report",
    "gather_on": "search",
}
_SPLITS = ("search", "selection", "held_out", "seed")  # options of a `ItemDraw`
_OURS = ("task", "name", "weight", "columns", "metric", *_SPLITS)
_TABLES = (".jsonl", ".json", ".csv", ".parquet")
_KINDS = {  # columns to the entry of the group `evaluator`; the first that a table has all of
    ("question", "context", "answers"): "question_answering",
    ("tokens", "tags"): "token_classification",
    ("tokens", "ner_tags"): "token_classification",
    ("image", "question", "choices", "answer"): "visual_choice",
    ("image", "question", "choices", "label"): "visual_choice",
    ("question", "choices", "answer"): "multiple_choice",
    ("question", "choices", "label"): "multiple_choice",
    ("text1", "text2", "score"): "sentence_similarity",
    ("query", "documents"): "retrieval",
    ("image", "label"): "zero_shot",
    ("audio", "text"): "transcription",
    ("source", "target"): "text_to_text",
    ("text", "label"): "accuracy",
    ("text",): "perplexity",
}
_OF_HEADS = ("accuracy", "question_answering", "token_classification")  # asked of an expert's own
_CHOICES = {
    "question": "question_field",
    "choices": "choices_field",
    "label": "label_field",
    "answer": "label_field",
}
_FIELDS = {  # of each, column to the option that names it
    "multiple_choice": _CHOICES,
    "visual_choice": {"image": "image_field", **_CHOICES},
    "question_answering": {
        "question": "question_field",
        "context": "context_field",
        "answers": "answers_field",
    },
    "token_classification": {
        "tokens": "words_field",
        "tags": "labels_field",
        "ner_tags": "labels_field",
    },
    "sentence_similarity": {
        "text1": "first_field",
        "text2": "second_field",
        "score": "score_field",
    },
    "retrieval": {"query": "query_field", "documents": "documents_field"},
    "transcription": {"audio": "audio_field", "text": "text_field"},
    "text_to_text": {"source": "source_field", "target": "target_field"},
    "zero_shot": {"image": "image_field", "label": "label_field"},
    "accuracy": {"text": "text_field", "pair": "pair_field", "label": "label_field"},
    "perplexity": {"text": "field"},
}


def with_tasks(config: DictConfig) -> DictConfig:
    """Returns a configuration whose panels are those of its `tasks`; the same where it has none.

    Raises:
        UserError: an entry is no task, or a file's columns make none; names it.
    """
    if config.get("tasks") is None:
        return config
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, ["tasks", "splits"]))
    tasks = plain["tasks"] if isinstance(plain["tasks"], list) else [plain["tasks"]]
    entries = _named([_entry(task) for task in tasks])
    splits = plain["splits"] or {}
    if not isinstance(splits, Mapping):
        raise UserError(f"splits={splits}: expected {{search:N,selection:N,held_out:N,seed:N}}")
    changed = config.copy()
    for option in _PANELS.keys() & changed.keys():
        changed[option] = {
            name: _evaluator(name, entry, {"panel": _PANELS[option], **splits})
            for name, entry in entries.items()
        }
    if "objective" in changed:
        _judge(changed.objective, entries)
    return changed


def _entry(task: Any) -> Mapping[str, Any]:
    """Returns an entry of `tasks` as a mapping whose ``task`` is a name or a file."""
    entry = dict(task) if isinstance(task, Mapping) else {"task": task}
    if not isinstance(entry.get("task"), str):
        raise UserError(
            f"tasks: {task!r} names no task: write an lm-eval task, a file, or {{task: ONE, ...}}"
        )
    if not isinstance(entry.get("columns", {}), Mapping | None):
        raise UserError(
            f"tasks: columns {entry['columns']!r} of {entry['task']} names none by its meaning: "
            "write columns:{text:COLUMN}"
        )
    return entry


def _named(entries: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Returns the entries by their names: those they give themselves, else task or file's stem."""
    if not entries:
        raise UserError("tasks=[]: name a task, for example tasks=[arc_easy]")
    named: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        task = Path(str(entry["task"]))
        is_file = task.suffix in (*_TABLES, ".yaml", ".yml", ".npz")
        own = re.sub(r"[^A-Za-z0-9_.-]", "-", task.stem if is_file else str(task))
        name = str(entry.get("name") or own)
        if name in named:
            raise UserError(f"tasks: two have the name {name!r}: give one of them another name:")
        named[name] = entry
    return named


def _evaluator(name: str, entry: Mapping[str, Any], draw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the group `evaluator` holds for one task on one panel."""
    kind, options = _kind(name, entry)
    own = {key: entry[key] for key in _SPLITS if key in entry}
    take = {"_target_": "evaluators.tasks.splits.ItemDraw", **draw, **own}
    whole: Mapping[str, Any] = next(iter(yaml.safe_load(texts("evaluator")[kind]).values()))
    given = {key: value for key, value in entry.items() if key not in _OURS}
    return {**whole, **options, "take": take, **given}


def _kind(name: str, entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns an entry of the group `evaluator`, and what a task sets in it."""
    task = str(entry["task"])
    path = Path(task).expanduser()
    if entry.get("columns") is not None and path.suffix not in _TABLES:
        raise UserError(f"tasks: {task} is no table: leave its columns: out")
    if path.suffix == ".txt":
        raise UserError(f"tasks: {task} is one document: make it a file with a text in each line")
    if path.suffix == ".npz":
        return "accuracy", {"data": task, "head": name}
    if path.suffix not in _TABLES:
        return "lm_eval", {"task": task, "metric": entry.get("metric")}
    if not path.is_file():
        raise UserError(f"tasks: there is no file {task}: correct its path")
    kind, by_role = _by_columns(task, columns(path), entry.get("columns"))
    fields = {_FIELDS[kind][role]: column for role, column in by_role.items()}
    return kind, {"data": task, **fields, **({"head": name} if kind in _OF_HEADS else {})}


def _by_columns(
    task: str, found: Sequence[str], named: Mapping[str, str] | None
) -> tuple[str, dict[str, str]]:
    """Returns the kind of a table's task, and its columns by what they are to it."""
    roles = {each: each for each in found} if named is None else dict(named)
    kind = next((kind for needed, kind in _KINDS.items() if {*needed} <= {*roles}), None)
    absent = [column for column in roles.values() if column not in found]
    if kind is None or absent:
        why = f"{absent[0]} is none of them" if absent else "these make no task"
        raise UserError(
            f"tasks: {task} has the columns {', '.join(found) or '(none)'}, and {why}: name those "
            "that hold text, or text and label, or question, choices and answer, or others of "
            "docs/own_experts.md, for example columns:{text:COLUMN}"
        )
    for first, second in (("answer", "label"), ("tags", "ner_tags")):
        if first in roles:
            roles.pop(second, None)
    return kind, {role: roles[role] for role in _FIELDS[kind] if role in roles}


def _judge(objective: DictConfig, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts the weights and metrics that the entries give into the objective."""
    weights = {name: entry.get("weight") for name, entry in entries.items()}
    if any(weight is not None for weight in weights.values()):
        if "weights" not in objective:
            raise UserError(
                f"tasks: objective {str(objective['_target_']).rpartition('.')[2]} takes no "
                "weight: leave weight: out, or choose objective=normalized"
            )
        objective.weights = {k: 1.0 if each is None else each for k, each in weights.items()}
    metrics = {
        name: entry["metric"]
        for name, entry in entries.items()
        if entry.get("metric") is not None
        and Path(str(entry["task"])).suffix in (*_TABLES, ".npz")
    }
    if metrics:
        objective.metrics = {**(objective.metrics or {}), **metrics}
