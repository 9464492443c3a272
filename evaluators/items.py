"""The items of a task on one split: what each asks of a model, and what its answers should be."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Generic, Protocol, TypeVar

from evaluators.requests import Classify, Match, Request

T = TypeVar("T")

AND = " + "  # between the files of one source


@dataclass(frozen=True, eq=False)
class TaskItem(Generic[T]):
    """One item of a task, tokenised.

    Args:
        digest: of its content, equal on every machine.
        requests: what a model is asked.
        target: what the answers are compared with, for example a label.
    """

    digest: str
    requests: tuple[Request, ...]
    target: T


@dataclass(frozen=True, eq=False)
class ItemSet(Generic[T]):
    """The items of one split, in order.

    Args:
        source: identity of the data and its split: paths with `AND` between them, then in brackets
            what is taken of these, such as a range.
        items: two splits must not share their digests.
        shown: `data` of which every item's prompt shows some as examples.
        found: items of `data` that these were taken from, distinct ones where they were drawn;
            None: not counted.
    """

    source: str
    items: tuple[TaskItem[T], ...]
    shown: frozenset[str] = frozenset()
    found: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TaskItem[T]]:
        return iter(self.items)

    @cached_property
    def requests(self) -> tuple[Request, ...]:
        """The requests of all items, one item's after the other's; always the same object."""
        return tuple(request for item in self.items for request in item.requests)

    @property
    def data(self) -> frozenset[str]:
        """Identities of the files, whatever is taken of them."""
        return frozenset((self.source.rpartition("[")[0] or self.source).split(AND))

    @property
    def digests(self) -> tuple[str, ...]:
        """Digest of every item."""
        return tuple(item.digest for item in self.items)

    @property
    def content(self) -> str:
        """Digest of all that scores rest on: the items, what they ask, what the answers should be.

        `digests` leave out what the answers should be: two items may differ in it alone.
        """
        whole = hashlib.blake2b(digest_size=16)
        for item in self.items:
            asked = [one for one in item.requests if not isinstance(one, Classify | Match)]
            text = repr((item.digest, asked, item.target))  # tensors have their digest
            whole.update(re.sub(r" at 0x[0-9a-f]+", "", text).encode())
        return whole.hexdigest()

    @property
    def targets(self) -> tuple[T, ...]:
        """Target of every item."""
        return tuple(item.target for item in self.items)

    @property
    def spans(self) -> list[slice]:
        """Which of `requests` are each item's."""
        ends = accumulate(len(item.requests) for item in self.items)
        return [slice(start, end) for start, end in pairwise([0, *ends])]

    def subset(self, indices: Sequence[int]) -> ItemSet[T]:
        """Returns some of the items, in the order of `indices`.

        Raises:
            ValueError: there are none, one is out of range, or one comes twice.
        """
        numbers = [int(index) for index in indices]
        if not numbers:
            raise ValueError(f"a subset of {self.source} needs at least one item")
        outside = [number for number in numbers if not 0 <= number < len(self)]
        if outside:
            raise ValueError(
                f"{self.source} has items 0 to {len(self) - 1}, a subset names {outside[0]}"
            )
        if len(set(numbers)) < len(numbers):
            doubled = next(number for number in numbers if numbers.count(number) > 1)
            raise ValueError(f"a subset of {self.source} names item {doubled} more than once")
        return replace(self, items=tuple(self.items[number] for number in numbers))


class _HasItems(Protocol):
    items: ItemSet[Any]


E = TypeVar("E", bound=_HasItems)


def on_subset(evaluator: E, indices: Sequence[int]) -> E:
    """Returns a copy of an evaluator that holds some of its items; see `ItemSet.subset`."""
    part = copy.copy(evaluator)
    part.items = evaluator.items.subset(indices)
    return part
