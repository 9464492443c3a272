"""Names of groups: the options in which they differ, and no others."""

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
    shown = _without_repeats([_differing(group, options) for group in options])
    names = [str(group.get("name", "")) for group in options]
    if len(options) == 1:
        return [names[0] or "all runs"], shown
    if len(set(names)) == len(names) and all(names):
        return names, [{k: v for k, v in group.items() if k != "name"} for group in shown]
    short = _short({key for group in shown for key in group})
    texts = [" ".join(f"{short[key]}={value}" for key, value in group.items()) for group in shown]
    return _distinct([text or "the defaults" for text in texts]), shown


def _distinct(texts: Sequence[str]) -> list[str]:
    """Numbers labels that are alike, as of two classes of one name."""
    return [
        text if texts.count(text) == 1 else f"{text} #{texts[:index].count(text) + 1}"
        for index, text in enumerate(texts)
    ]


def _differing(group: Mapping[str, Any], options: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the options of a group that another group with the same parts has otherwise."""
    differing = {}
    for key, value in group.items():
        peers = [other for other in options if _same_part(group, other, key)]
        if any(other.get(key, _ABSENT) != value for other in peers):
            differing[key] = show(value).rpartition(".")[2] if _is_target(key) else show(value)
    return differing


def _is_target(key: str) -> bool:
    return key.rpartition(".")[2] == _TARGET


def _same_part(group: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    """Whether all parts that hold `key` are of the same class in both."""
    holder = key.rpartition(".")[0]
    if _is_target(key):
        holder = holder.rpartition(".")[0]
    while holder:
        target = f"{holder}.{_TARGET}"
        if group.get(target) != other.get(target):
            return False
        holder = holder.rpartition(".")[0]
    return True


def _without_repeats(groups: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Leaves out a longer key where a shorter one says the same in every group.

    The strategy's options lead, as what differs most.
    """
    keys = sorted({key for group in groups for key in group}, key=lambda key: key.count("."))
    columns = {key: [group.get(key) for group in groups] for key in keys}
    kept: list[str] = []
    for key in keys:
        same = [other for other in kept if columns[other] == columns[key]]
        if _tail(key) not in map(_tail, same):
            kept.append(key)
    return [
        {
            key: group[key]
            for key in sorted(group, key=lambda key: key not in kept or key[:8] != "strategy")
            if key in kept
        }
        for group in groups
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
        parts, others = text.split("."), [other for other in plain.values() if other != text]
        endings = (".".join(parts[-count:]) for count in range(1, len(parts)))
        short[key] = next(
            (e for e in endings if not any(f".{o}".endswith(f".{e}") for o in others)), text
        )
    return short
