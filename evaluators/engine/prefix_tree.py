"""Rows that begin alike as a tree, so that what they share is computed once.

Few-shot examples are the root, every item's question a branch, its answers the leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evaluators.engine.batching import T, pack

_LEAST = 8  # tokens; shorter common beginnings are not worth a pass of their own
_SAVING = 0.25  # of the tokens that the rows would take without it
_CACHED = 4  # tokens that rows only hold in the cache, for each token that they compute


@dataclass(frozen=True)
class Branch:
    """Tokens that follow those of the branch before: a node of the tree.

    Args:
        tokens: at least one.
        row: number of the row that ends here; None: `branches` go on.
    """

    tokens: tuple[int, ...]
    row: int | None = None
    branches: tuple[Branch, ...] = ()

    @property
    def leaves(self) -> int:
        """Tokens of all rows behind this branch."""
        return sum(
            len(branch.tokens) if branch.row is not None else branch.leaves
            for branch in self.branches
        )

    def rows(self) -> Iterator[int]:
        """Yields the numbers of all rows that begin with this branch."""
        if self.row is not None:
            yield self.row
        for branch in self.branches:
            yield from branch.rows()


def grow(rows: Sequence[tuple[int, ...]], ends: Sequence[int]) -> list[Branch]:
    """Returns the branches of all rows; a row that shares too little is one by itself.

    Args:
        rows: tokens, each row once.
        ends: how many tokens of each row may be shared, fewer than it has.

    Example:
        >>> one, other = (*range(9), 20, 21), (*range(9), 30)
        >>> shared, = grow([one, other], [9, 9])
        >>> len(shared.tokens), [branch.tokens for branch in shared.branches]
        (9, [(20, 21), (30,)])
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    common = [_common(rows[i], rows[j]) for i, j in pairwise(order)]
    return _Grower(rows, ends, order, common).branches(0, len(rows), 0)


def groups(rows: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Returns the rows by what they begin with: how many tokens they share, and their numbers.

    Rows that share too little come first, with 0 shared tokens.
    """
    alone: list[int] = []
    shared: list[tuple[int, list[int]]] = []
    for branch in grow(rows, [len(row) - 1 for row in rows]):
        if branch.row is not None:
            alone.append(branch.row)
        else:
            shared.append((len(branch.tokens), sorted(branch.rows())))
    return [(0, sorted(alone)), *shared] if alone else shared


@dataclass(frozen=True)
class _Grower:
    """Grows the tree over sorted rows, from what neighbours begin with in common.

    Args:
        order: numbers of the rows, sorted by their tokens.
        common: how many first tokens ``order[i]`` and ``order[i + 1]`` share.
    """

    rows: Sequence[tuple[int, ...]]
    ends: Sequence[int]
    order: Sequence[int]
    common: Sequence[int]

    def branches(self, first: int, last: int, depth: int) -> list[Branch]:
        """Returns the branches of ``order[first:last]``, behind `depth` tokens.

        The rows of an interval of the order all begin with ``min(common)`` same tokens. Where
        computing these once saves too little, the interval is cut wherever neighbours share no
        more than that, and the parts are looked at in turn.
        """
        branches: list[Branch] = []
        intervals = [(first, last)]  # a stack: the next one is the last
        while intervals:
            low, high = intervals.pop()
            numbers = self.order[low:high]
            if len(numbers) == 1:
                branches.append(Branch(self.rows[numbers[0]][depth:], numbers[0]))
                continue
            least = min(self.common[low : high - 1])
            end = min(least, *(self.ends[number] for number in numbers))
            if self._saves(numbers, depth, end):
                shared = self.rows[numbers[0]][depth:end]
                branches.append(Branch(shared, branches=tuple(self.branches(low, high, end))))
            else:
                cuts = [i for i in range(low + 1, high) if self.common[i - 1] == least]
                intervals += reversed(list(pairwise([low, *cuts, high])))
        return branches

    def _saves(self, numbers: Sequence[int], depth: int, end: int) -> bool:
        """Whether it pays to compute the tokens from `depth` to `end` once for these rows."""
        shared = end - depth
        tokens = sum(len(self.rows[number]) - depth for number in numbers)
        return shared >= _LEAST and (len(numbers) - 1) * shared >= _SAVING * tokens


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def packed(
    branches: Sequence[tuple[Branch, T]], held: int, batch_tokens: int
) -> list[list[tuple[Branch, T]]]:
    """Returns branches of one level in batches: of rows that end, or of prefixes that go on.

    Prefixes of one batch differ in length by less than a factor of two.

    Args:
        held: tokens before them that their rows hold in the cache.
        batch_tokens: of one pass, padding included.
    """
    by_length: dict[int, list[tuple[Branch, T]]] = {}
    for branch, owner in branches:
        # floor(log2 length) + 1 for a prefix; rows, which are padded on the other side, apart
        length = -1 if branch.row is not None else len(branch.tokens).bit_length()
        by_length.setdefault(length, []).append((branch, owner))
    least_cost = -(-held // _CACHED)  # ceil(held / _CACHED)
    batches: list[list[tuple[Branch, T]]] = []
    for _, alike in sorted(by_length.items()):
        ordered = sorted(alike, key=lambda entry: (-_cost(entry[0]), entry[0].tokens))
        costs = [max(_cost(branch), least_cost) for branch, _ in ordered]
        batches += pack(ordered, costs, batch_tokens)
    return batches


def _cost(branch: Branch) -> int:
    """Returns the tokens of a row, or those of a prefix or of all rows behind it."""
    return max(len(branch.tokens), branch.leaves)
