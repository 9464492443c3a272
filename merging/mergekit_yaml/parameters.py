"""The value that a mergekit file gives to a parameter for one tensor.

A setting is a number; a list of numbers, interpolated over the layers; or a list of
``{filter, value}`` whose filter is a part of the tensor's name, the first that fits counting.
Settings of one model come before those of the slice, these before those of the whole file; where
no filter fits, the next place is asked.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from merging.grouping import layer_of
from merging.mergekit_yaml.spelling import WORDS, MergekitError, Spelling

logger = logging.getLogger(__name__)

Settings: TypeAlias = Mapping[str, Any]
"""The content of a ``parameters`` key."""


@dataclass(frozen=True)
class TensorPosition:
    """The name and depth by which settings apply to a tensor.

    Args:
        name: in the base's file, as filters see it.
        depth: 0 in the first layer, 1 in the last one, 0 outside all layers: since 0.1, mergekit
            takes a gradient's first value for the final norm and the head too.
    """

    name: str
    depth: float


def positions(names: Sequence[str], file_names: Mapping[str, str]) -> dict[str, TensorPosition]:
    """Returns the position of every tensor of a model.

    Args:
        file_names: module name to name in the file; a name that lacks is the same in both.
    """
    counts = layer_counts(names)
    by_name = {}
    for name in names:
        depth = 0.0
        if (position := layer_of(name)) is not None:
            stack, layer = position
            last = counts[stack] - 1
            depth = layer / last if last else 1.0
        by_name[name] = TensorPosition(file_names.get(name, name), depth)
    return by_name


def layer_counts(names: Sequence[str]) -> dict[str, int]:
    """Returns the number of layers of every stack."""
    counts: dict[str, int] = {}
    for name in names:
        if position := layer_of(name):
            stack, layer = position
            counts[stack] = max(counts.get(stack, 0), layer + 1)
    return counts


def check_words(settings: Settings, spelling: Spelling, name: str, where: str) -> None:
    """Warns of parameters that the method ignores; raises MergekitError for unknown ones."""
    for word in settings:
        if word not in WORDS:
            known = ", ".join(sorted(spelling.parameters)) or "none"
            raise MergekitError(
                f"{where}: {word!r} is no parameter of merge_method {name}: it reads {known}"
            )
        if word not in spelling.parameters:
            logger.warning("%s: merge_method %s reads no %s; ignored", where, name, word)


def check_model_words(settings: Settings, spelling: Spelling, name: str, model: str) -> None:
    """As `check_words`, for one model: parameters of the whole merge raise MergekitError."""
    where = f"parameters of {model}"
    check_words(settings, spelling, name, where)
    for word in settings:
        if word in spelling.shared or word in spelling.options:
            raise MergekitError(
                f"{where}: mergekit reads {word} for the whole merge, not for one model: "
                "move it to the parameters at the top level"
            )


def resolve(parameter: str, scopes: Sequence[Settings], position: TensorPosition) -> float | None:
    """Returns the value in the first scope that gives one, None: none; raises MergekitError."""
    for scope in scopes:
        if parameter in scope:
            value = _evaluate(parameter, scope[parameter], position)
            if value is not None:
                return value
    return None


def _evaluate(parameter: str, setting: Any, position: TensorPosition) -> float | None:
    """Returns the value of one setting at `position`; None where no filter fits."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return number(parameter, setting)
    if not any(isinstance(entry, (dict, list)) for entry in setting):
        return _gradient([number(parameter, entry) for entry in setting], position.depth)
    for entry in setting:
        if not isinstance(entry, dict) or "value" not in entry or set(entry) - {"filter", "value"}:
            raise MergekitError(f"parameters: {parameter}: {entry} is no {{filter, value}}")
        part = entry.get("filter")
        if part in (None, "*") or str(part) in position.name:
            return _evaluate(parameter, entry["value"], position)
    return None


def _gradient(values: Sequence[float], depth: float) -> float | None:
    """Returns the value at `depth` on the broken line through `values`, spread over [0, 1]."""
    if not values:
        return None
    last = len(values) - 1
    low = int(depth * last)
    share = depth * last - low
    return (1 - share) * values[low] + share * values[min(low + 1, last)]


def number(parameter: str, value: Any) -> float:
    """Returns a number, also of YAML's text ``1e-4``; raises MergekitError where it is none."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise MergekitError(f"parameters: {parameter} needs a number, got {value!r}")
