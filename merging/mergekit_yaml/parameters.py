"""The value that a mergekit file gives to a parameter for one tensor.

A setting is a number; a list of numbers, interpolated over the layers; or a list of
``{filter, value}`` whose filter is a part of the tensor's name, the first that fits counting.
Settings of one model come before those of the slice, these before those of the whole file; where
no filter fits, the next place is asked.
"""

from __future__ import annotations

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
    """Where a tensor stands.

    Args:
        name: in the base's file, as filters see it.
        depth: 0 in the first layer, 1 in the last one, 0 outside all layers: since 0.1, mergekit
            takes a gradient's first value for the final norm and the head too.
    """

    name: str
    depth: float


def places(names: Sequence[str], file_names: Mapping[str, str]) -> dict[str, TensorPosition]:
    """Returns the place of every tensor of a model.

    Args:
        file_names: module name to name in the file; a name that lacks is the same in both.
    """
    counts = layer_counts(names)
    placed = {}
    for name in names:
        layer, depth = layer_of(name), 0.0
        if layer is not None:
            last = counts[layer[0]] - 1
            depth = layer[1] / last if last else 1.0
        placed[name] = TensorPosition(file_names.get(name, name), depth)
    return placed


def layer_counts(names: Sequence[str]) -> dict[str, int]:
    """Returns the number of layers of every stack."""
    counts: dict[str, int] = {}
    for name in names:
        if layer := layer_of(name):
            counts[layer[0]] = max(counts.get(layer[0], 0), layer[1] + 1)
    return counts


def check_words(settings: Settings, spelling: Spelling, name: str, where: str) -> None:
    """Warns of parameters that mergekit ignores with this method.

    Raises:
        MergekitError: a word that no method knows.
    """
    for word in settings:
        if word not in WORDS:
            known = ", ".join(sorted(spelling.parameters)) or "none"
            raise MergekitError(
                f"{where}: {word!r} is no parameter of merge_method {name}: it reads {known}"
            )
        if word not in spelling.parameters:
            logger.warning("%s: merge_method %s reads no %s; ignored", where, name, word)


def check_model_words(settings: Settings, spelling: Spelling, name: str, model: str) -> None:
    """As `check_words`, for the parameters of one model: those of the whole merge are none.

    Raises:
        MergekitError: a word that no method knows, or one that mergekit reads elsewhere only.
    """
    where = f"parameters of {model}"
    check_words(settings, spelling, name, where)
    for word in settings:
        if word in spelling.shared or word in spelling.options:
            raise MergekitError(
                f"{where}: mergekit reads {word} for the whole merge, not for one model: "
                "move it to the parameters at the top level"
            )


def resolve(parameter: str, scopes: Sequence[Settings], place: TensorPosition) -> float | None:
    """Returns the value at `place` in the first of `scopes` that gives one; None: none does.

    Raises:
        MergekitError: a setting that is no number, list or list of filters.
    """
    for scope in scopes:
        if parameter in scope:
            value = _evaluate(parameter, scope[parameter], place)
            if value is not None:
                return value
    return None


def _evaluate(parameter: str, setting: Any, place: TensorPosition) -> float | None:
    """Returns what one setting says of `place`; None where no filter fits."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return number(parameter, setting)
    if not any(isinstance(each, (dict, list)) for each in setting):
        return _gradient([number(parameter, each) for each in setting], place.depth)
    for each in setting:
        if not isinstance(each, dict) or "value" not in each or set(each) - {"filter", "value"}:
            raise MergekitError(f"parameters: {parameter}: {each} is no {{filter, value}}")
        part = each.get("filter")
        if part in (None, "*") or str(part) in place.name:
            return _evaluate(parameter, each["value"], place)
    return None


def _gradient(values: Sequence[float], depth: float) -> float | None:
    """Returns the value at `depth` on the broken line through `values`, spread over [0, 1]."""
    if not values:
        return None
    at = depth * (len(values) - 1)
    low = int(at)
    high, share = min(low + 1, len(values) - 1), at - low
    return (1 - share) * values[low] + share * values[high]


def number(parameter: str, value: Any) -> float:
    """Returns a number; YAML reads ``1e-4`` as text, mergekit as a number.

    Raises:
        MergekitError: it is none.
    """
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise MergekitError(f"parameters: {parameter} needs a number, got {value!r}")
