"""Base, experts and static starts, scored once for many runs that ask the same of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.runs.directory import check_ingredients, make_run
from experiments.runs.files import read_json
from experiments.runs.item_scores import cases_path
from experiments.runs.model_scores import SPLITS
from experiments.setup.initial import Static
from search.loop import jsonl

_KINDS = ("base", "expert")
_STATIC = f"{Static.__module__}.{Static.__qualname__}"
_ASKED = (
    "experts",
    "search_on",
    "select_on",
    "report_on",
    "overlap",
    "privacy",
    "device",
    "dtype",
    "batch_tokens",
    "timeout_s",
)


def share(source: Path, run: Path, config: DictConfig) -> bool:
    """Gives a run that has not begun the scores of models that another run has taken.

    Of base and experts, and of the static merges that both choose their start among; those that
    draw, draw otherwise for another seed. The run's directory then looks as if an earlier start
    had scored them. False where nothing is shared: the run has begun, asks other items or other
    models, or one of the two is on private items, whose scores must not lie beside what it
    releases.
    """
    if (
        config.get("privacy")
        or (run / "references.jsonl").exists()
        or not (source / "ingredients.json").exists()
    ):
        return False
    theirs, ours = (_resolved(one) for one in (OmegaConf.load(source / "config.yaml"), config))
    if any(theirs.get(key) != ours.get(key) for key in _ASKED):
        return False
    begun, wanted = _static_starts(theirs), _static_starts(ours)
    starts = {name for name, start in wanted.items() if begun.get(name) == start}
    make_run(run, config)
    ingredients = read_json(source / "ingredients.json")
    ingredients.pop("start", None)
    check_ingredients(run, ingredients)  # the run compares its own with them before it goes on
    lines = [
        line
        for line in jsonl.read(source / "references.jsonl")
        if line["kind"] in _KINDS or (line["kind"] == "start" and line["name"] in starts)
    ]
    numbers = {line["id"]: number for number, line in enumerate(lines)}
    for split in SPLITS:  # before the lines that they belong to, as a run writes them
        cases_path(run, split).unlink(missing_ok=True)  # of a copy that was cut short
        for line in jsonl.read(cases_path(source, split)):
            if line["id"] in numbers:
                jsonl.append(cases_path(run, split), {**line, "id": numbers[line["id"]]})
    for line in lines:
        jsonl.append(run / "references.jsonl", {**line, "id": numbers[line["id"]]})
    return True


def _resolved(config: Any) -> dict[Any, Any]:
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def _static_starts(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the static merges among which a run chooses its start, by name."""
    initial = config.get("initial") or {}
    starts = (initial.get("of") or {}).items()
    return {name: start for name, start in starts if start.get("_target_") == _STATIC}
