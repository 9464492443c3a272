"""Schedules: which blocks to give up together, asked group by group, from the least salient up.

A schedule asks ``check(group)``: may these blocks go, on top of all that went before? Whoever
answers yes has let them go. Blocks are whole numbers, nothing else is known of them here.

Source: Privacy and accuracy-aware model deduplication, arXiv:2503.02862, and its public code.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from search.checks import check_at_least

Check: TypeAlias = Callable[[Sequence[int]], bool]
"""Whether a group of blocks may go; yes: they are gone."""


@dataclass
class Asked:
    """Asks `check`, and remembers; after so many noes it must not be asked again.

    Args:
        failures: how many noes there may be; None: any number.
    """

    check: Check
    failures: int | None = None
    groups: list[tuple[int, ...]] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether there were as many noes as there may be."""
        return self.failures is not None and self.answers.count(False) >= self.failures

    @property
    def removed(self) -> set[int]:
        """The blocks that went."""
        pairs = zip(self.groups, self.answers, strict=True)
        return {block for group, answer in pairs if answer for block in group}

    def __call__(self, group: Sequence[int]) -> bool:
        """Returns the answer; raises RuntimeError after the last no."""
        if self.ended:
            raise RuntimeError(f"all {self.failures} failures are spent: nothing may be asked")
        answer = self.check(group)
        self.groups.append(tuple(group))
        self.answers.append(answer)
        return answer


class DedupSchedule(Protocol):
    """An order of questions; `failures` is how many noes it takes, None: any number."""

    @property
    def failures(self) -> int | None:
        """How many noes there may be."""
        ...

    def ask(self, order: Sequence[int], asked: Asked) -> None:
        """Asks about the blocks of `order`, the least salient first, until it is at its end."""
        ...

    def most(self, count: int) -> int:
        """Returns how many questions so many blocks may take, whatever the answers."""
        ...


def run(
    schedule: DedupSchedule,
    order: Sequence[int],
    check: Check,
    *,
    zeros: Sequence[int] = (),
    lent: Callable[[], Collection[int]] = tuple,
) -> Asked:
    """Asks all that a schedule asks of one model, and at the end about blocks of no saliency.

    The last question is one of the counted ones: it has its noise and its price.

    Args:
        order: blocks, the least salient first.
        zeros: blocks whose saliency is exactly zero, which are in no other question.
        lent: blocks that now stand in the place of others: they stay.

    Returns:
        What was asked, and what went.
    """
    asked = Asked(check, schedule.failures)
    schedule.ask(order, asked)
    kept = set(lent())
    last = [block for block in zeros if block not in kept]
    if last and not asked.ended:
        asked(last)
    return asked


@dataclass(frozen=True)
class GreedyN:
    """So many blocks at a time, each group kept or put back: greedy-N (Dedup-20, Mistique-20)."""

    size: int = 20
    failures: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, size=self.size, failures=self.failures)

    def ask(self, order: Sequence[int], asked: Asked) -> None:
        """See `DedupSchedule`."""
        for start in range(0, len(order), self.size):
            if asked.ended:
                return
            asked(order[start : start + self.size])

    def most(self, count: int) -> int:
        """See `DedupSchedule`."""
        return math.ceil(count / self.size)


@dataclass(frozen=True)
class _Halving:
    """What schedules that halve ranges have in common.

    Args:
        min_length: ranges below are left alone. With the half that is left, that is the least
            that stays; at 1 nothing stays that was not asked about.
    """

    min_length: int = 10
    failures: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, min_length=self.min_length, failures=self.failures)


@dataclass(frozen=True)
class Drd(_Halving):
    """The left half; where it may not go, its own left half, and so on ("binary").

    The right half is tried only if the left one went, or if more than half of it went in the end.
    """

    def ask(self, order: Sequence[int], asked: Asked) -> None:
        """See `DedupSchedule`."""
        if len(order) < self.min_length or asked.ended:
            return
        left, right = _halves(order)
        if not asked(left):
            if len(left) > 1:
                self.ask(left, asked)
            if 2 * len(asked.removed.intersection(left)) <= len(left):
                return
        self.ask(right, asked)

    def most(self, count: int) -> int:
        """See `DedupSchedule`."""
        if count < self.min_length:
            return 0
        left = max(1, count // 2)
        return 1 + (self.most(left) if left > 1 else 0) + self.most(count - left)


@dataclass(frozen=True)
class Dred(_Halving):
    """The left half of a range that shrinks to it where it fails, and else expands ("halving").

    A range below `min_length` ends it. A single block that may not go (`min_length` 1) stays, and
    the range expands to all that is left after it.
    """

    def ask(self, order: Sequence[int], asked: Asked) -> None:
        """See `DedupSchedule`."""
        current, rest = list(order), list[int]()
        while len(current) >= self.min_length and not asked.ended:
            left, right = _halves(current)
            rest = [*right, *rest]
            if asked(left) or len(left) == self.min_length == 1:
                current, rest = rest, []  # expands to all that is left
            else:
                current = left  # shrinks

    def most(self, count: int) -> int:
        """See `DedupSchedule`."""
        most = [0] * (count + 1)
        for blocks in range(self.min_length, count + 1):
            current, asked = blocks, 0
            while current >= self.min_length:  # the first yes after so many noes, or none
                current, asked = max(1, current // 2), asked + 1
                most[blocks] = max(most[blocks], asked + most[blocks - current])
                if current == self.min_length == 1:
                    break
        return most[count]


def _halves(blocks: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns two halves, the right one the larger; a single block is the left one."""
    middle = max(1, len(blocks) // 2)
    return list(blocks[:middle]), list(blocks[middle:])
