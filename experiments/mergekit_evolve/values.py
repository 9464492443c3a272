"""Values of a mergekit-evolve file, checked one by one."""

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar, cast

Entry: TypeAlias = Mapping[str, Any]
T = TypeVar("T")
D = TypeVar("D")

_CALLED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list of texts",
}


class EvolveError(ValueError):
    """A file that is none of mergekit-evolve's; names the key and the remedy."""


def value(entry: Entry, key: str, kind: type[T], default: D, where: str = "") -> T | D:
    """Returns a value of that kind, `default` for none; raises EvolveError for another kind."""
    given = entry.get(key)
    if given is None:
        return default
    fits = isinstance(given, int | float if kind is float else kind)
    if isinstance(given, bool) and kind is not bool:
        fits = False
    if isinstance(given, list) and not all(isinstance(each, str) for each in given):
        fits = False
    if not fits:
        raise EvolveError(f"{where}{key}: expected {_CALLED[kind]}, got {given!r}")
    return cast(T, given)
