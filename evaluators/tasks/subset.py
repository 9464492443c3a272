"""Places of a subset of items, checked, and what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


def checked_places(items: Sequence[int], count: int, source: str) -> list[int]:
    """Returns the places of a subset.

    Args:
        items: places in an evaluator's items, each once, in any order.
        count: how many items the evaluator has.
        source: of the evaluator, for messages.

    Raises:
        ValueError: there are none, one is no place, or one comes twice.
    """
    places = [int(place) for place in items]
    if not places:
        raise ValueError(f"a subset of {source} needs at least one item")
    outside = [place for place in places if not 0 <= place < count]
    if outside:
        raise ValueError(f"{source} has items 0 to {count - 1}, a subset names {outside[0]}")
    if len(set(places)) < len(places):
        doubled = next(place for place in places if places.count(place) > 1)
        raise ValueError(f"a subset of {source} names item {doubled} more than once")
    return places


def of_places(values: Sequence[T], sizes: Sequence[int], places: Sequence[int]) -> tuple[T, ...]:
    """Returns the values of the items at `places`, in their order.

    Args:
        values: of all items, one item's after the other's.
        sizes: how many each item has.
        places: of the items to take.

    Example:
        >>> of_places("abbccc", [1, 2, 3], [2, 0])
        ('c', 'c', 'c', 'a')
    """
    starts = [0, *accumulate(sizes)]
    return tuple(value for place in places for value in values[starts[place] : starts[place + 1]])
