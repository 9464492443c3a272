"""Names of groups: the options in which they differ, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_TARGET = "_target_"
_ABSENT = object()


def show(value: Any) -> str:
    """Returns an option's value as text; of a class's path only the class."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def labels(options: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, str]]]:
    """Returns a label for each group, and the options in which it differs from others.

    An option of a part (a strategy, a space) is compared only among groups that have the same
    part there: ``strategy=NevergradStrategy optimizer=CMA`` beside ``strategy=RandomSearch``. An
    option that several places repeat is shown once. Groups that all have a name of their own are
    labelled by it.

    Args:
        options: dotted key to value, one mapping per group.
    """
    differing = [_differing(own, options) for own in options]
    shown = _once(differing)
    names = [str(own.get("name", "")) for own in options]
    if len(options) > 1 and len(set(names)) == len(names) and all(names):
        return names, [{k: v for k, v in each.items() if k != "name"} for each in shown]
    short = _short({key for each in shown for key in each})
    texts = [" ".join(f"{short[key]}={value}" for key, value in each.items()) for each in shown]
    if len(options) == 1:
        return [names[0] or "all runs"], shown
    return _distinct([text or "the defaults" for text in texts]), shown


def _distinct(texts: Sequence[str]) -> list[str]:
    """Numbers labels that are alike, as of two classes of one name."""
    return [
        text if texts.count(text) == 1 else f"{text} #{texts[:index].count(text) + 1}"
        for index, text in enumerate(texts)
    ]


def _differing(own: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for key, value in own.items():
        peers = [each for each in options if _same_part(own, each, key)]
        if any(each.get(key, _ABSENT) != value for each in peers):
            found[key] = show(value).rpartition(".")[2] if _is_target(key) else show(value)
    return found


def _is_target(key: str) -> bool:
    return key.rpartition(".")[2] == _TARGET


def _same_part(own: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    """Whether all parts that hold `key` are of the same class in both."""
    holder = key.rpartition(".")[0]
    if _is_target(key):
        holder = holder.rpartition(".")[0]
    while holder:
        target = f"{holder}.{_TARGET}"
        if own.get(target) != other.get(target):
            return False
        holder = holder.rpartition(".")[0]
    return True


def _once(differing: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Leaves out a longer key where a shorter one says the same in every group."""
    keys = sorted({key for each in differing for key in each}, key=lambda key: key.count("."))
    kept: list[str] = []
    for key in keys:
        column = [each.get(key) for each in differing]
        tail = _tail(key)
        if not any(
            _tail(other) == tail and [each.get(other) for each in differing] == column
            for other in kept
        ):
            kept.append(key)
    order = {
        key: not key.startswith("strategy") for key in kept
    }  # it leads, it is what differs most
    return [
        {key: each[key] for key in sorted(each, key=lambda k: order.get(k, True)) if key in order}
        for each in differing
    ]


def _tail(key: str) -> str:
    """Returns the last part of a key, of a class the part that it fills as well."""
    parts = key.split(".")
    return ".".join(parts[-2:]) if parts[-1] == _TARGET else parts[-1]


def _short(keys: set[str]) -> dict[str, str]:
    """Returns key to its shortest ending that no other key shares."""
    plain = {key: key.removesuffix(f".{_TARGET}") for key in keys}
    short = {}
    for key, text in plain.items():
        parts = text.split(".")
        short[key] = next(
            (
                ".".join(parts[-count:])
                for count in range(1, len(parts))
                if not any(
                    other != text and f".{other}".endswith("." + ".".join(parts[-count:]))
                    for other in plain.values()
                )
            ),
            text,
        )
    return short
