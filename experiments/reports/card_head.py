"""The YAML head of a model card: what the Hub reads of a merge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import metadata_load

from experiments.runs.files import Json
from experiments.runs.model_scores import TaskColumn
from experiments.runs.sources import hub_id
from merging.checkpoints.expert import CheckpointExpert
from merging.checkpoints.experts import ExpertPool

_ENDS = 4
"""Decimals of values and ends of intervals, as in the card's tables."""


@dataclass(frozen=True)
class HeldOutFacts:
    """What is known of the held-out items beside the scores.

    Args:
        kinds: task to the Hub's name of what is asked, for example ``text-generation``; the Hub
            has none for the others, which it lists no results of.
        datasets: task to the id and configuration of its data on the Hub; others have files.
        intervals: ``task/metric`` to the ends of the winner's 95 % interval over items.
        items: task to how many there are.
    """

    kinds: Mapping[str, str]
    datasets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    items: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Parents:
    """What base and experts say of themselves, in the heads of their own cards.

    Args:
        license: the one that all of them state; None: they differ, or one states none.
        datasets: that they were trained on, by the Hub's ids.
    """

    license: str | None = None
    datasets: Sequence[str] = ()

    @classmethod
    def of(cls, pool: ExpertPool) -> "Parents":
        """Returns what base and experts say."""
        experts = pool.experts.values()
        models = [e.checkpoint if isinstance(e, CheckpointExpert) else e for e in experts]
        return cls.in_folders([Path(getattr(m, "path", "")) for m in (pool.base, *models)])

    @classmethod
    def in_folders(cls, folders: Sequence[Path]) -> "Parents":
        """Returns what the models in `folders` say."""
        heads = [_head(folder) for folder in folders]
        licenses = {str(head.get("license") or "") for head in heads}
        datasets = [name for head in heads for name in _listed(head.get("datasets"))]
        license = licenses.pop() if len(licenses) == 1 else None
        return cls(license or None, tuple(dict.fromkeys(datasets)))


def _head(folder: Path) -> Mapping[str, Any]:
    """Returns the head of a folder's card, the licence else from its config.json."""
    try:
        head = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        head = {}
    try:
        config = yaml.safe_load((folder / "config.json").read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        config = {}
    return {"license": config.get("license"), **head}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(each) for each in value or ()]


def front_matter(
    recipe: Json,
    parents: Parents,
    name: str,
    results: Sequence[EvalResult] = (),
    datasets: Sequence[str] = (),
) -> str:
    """Returns the head of a card, between its rules.

    Args:
        name: of the model, in the index of results.
        datasets: ids on the Hub of what chose the coefficients.
    """
    hub, _ = on_the_hub(recipe)
    data = ModelCardData(
        base_model=hub or None,
        base_model_relation="merge" if hub else None,
        library_name="transformers",
        license=parents.license,
        tags=["merge", "evomerge", *_method(recipe)],
        datasets=list(dict.fromkeys([*parents.datasets, *datasets])) or None,
        model_name=name if results else None,
        eval_results=list(results) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def on_the_hub(recipe: Json) -> tuple[list[str], list[str]]:
    """Returns the ids of base and experts on the Hub, and the names of those without one."""
    parents = {"base": recipe["base"], **recipe["experts"]}
    ids = {name: hub_id(str(entry["source"])) for name, entry in parents.items()}
    found = list(dict.fromkeys(i for i in ids.values() if i is not None))
    return found, [name for name, i in ids.items() if i is None]


def _method(recipe: Json) -> list[str]:
    """Returns the tag of a method or of another kind of plan."""
    target = (recipe.get("method") or {}).get("_target_") or recipe.get("kind") or ""
    parts = str(target).split(".")
    return [parts[-2] if len(parts) > 1 else parts[0]] if target else []


def eval_results(
    tasks: Sequence[TaskColumn], scores: Mapping[str, float], held_out: HeldOutFacts
) -> list[EvalResult]:
    """Returns the winner's held-out scores as the Hub lists them, a task each."""
    return [
        _result(task, scores[task.metric], held_out)
        for task in tasks
        if task.metric in scores and task.name in held_out.kinds
    ]


def _result(task: TaskColumn, value: float, held_out: HeldOutFacts) -> EvalResult:
    dataset, *configuration = held_out.datasets.get(task.name) or [task.name]
    told: dict[str, Any] = {}
    if task.name in held_out.items:
        told["items"] = held_out.items[task.name]
    if (ends := held_out.intervals.get(task.metric)) is not None:
        told["interval_95"] = [round(float(end), _ENDS) for end in ends]
    return EvalResult(
        task_type=held_out.kinds[task.name],
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_config=configuration[0] if configuration else None,
        metric_type=task.metric.partition("/")[2],
        metric_name=task.metric,
        metric_value=round(value, _ENDS),
        metric_args=told or None,
    )
