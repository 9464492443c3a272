"""Rows that begin alike as a tree, so that what they share is computed once.

Few-shot examples are the trunk, every item's question a branch, its answers the leaves.
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
    """Tokens that follow those of the branch before.

    Args:
        tokens: at least one.
        row: number of the row that ends here; None: `branches` go on.
        branches: how it goes on.
    """

    tokens: tuple[int, ...]
    row: int | None = None
    branches: tuple[Branch, ...] = ()

    @property
    def leaves(self) -> int:
        """Tokens of all rows behind this branch."""
        return sum(len(b.tokens) if b.row is not None else b.leaves for b in self.branches)

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
        >>> trunk, = grow([one, other], [9, 9])
        >>> len(trunk.tokens), [branch.tokens for branch in trunk.branches]
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
    found: list[tuple[int, list[int]]] = []
    for branch in grow(rows, [len(row) - 1 for row in rows]):
        if branch.row is not None:
            alone.append(branch.row)
        else:
            found.append((len(branch.tokens), sorted(branch.rows())))
    return [(0, sorted(alone)), *found] if alone else found


class _Grower:
    """Looks at the beginnings that neighbours in the sorted order have in common."""

    def __init__(
        self,
        rows: Sequence[tuple[int, ...]],
        ends: Sequence[int],
        order: Sequence[int],
        common: Sequence[int],
    ) -> None:
        self._rows, self._ends, self._order, self._common = rows, ends, order, common

    def branches(self, first: int, last: int, depth: int) -> list[Branch]:
        """Returns the branches of the rows from `first` to `last`, behind `depth` tokens."""
        grown: list[Branch] = []
        waiting = [(first, last)]
        while waiting:
            low, high = waiting.pop()
            if high - low == 1:
                row = self._order[low]
                grown.append(Branch(self._rows[row][depth:], row))
                continue
            shared = min(self._common[low : high - 1])
            depth_of_all = min(shared, *(self._ends[i] for i in self._order[low:high]))
            if self._saves(low, high, depth, depth_of_all):
                tokens = self._rows[self._order[low]][depth:depth_of_all]
                inner = tuple(self.branches(low, high, depth_of_all))
                grown.append(Branch(tokens, branches=inner))
            else:
                cuts = [i + 1 for i in range(low, high - 1) if self._common[i] == shared]
                waiting += reversed(list(pairwise([low, *cuts, high])))
        return grown

    def _saves(self, low: int, high: int, depth: int, shared: int) -> bool:
        if shared - depth < _LEAST:
            return False
        whole = sum(len(self._rows[i]) - depth for i in self._order[low:high])
        return (high - low - 1) * (shared - depth) >= _SAVING * whole


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many tokens both begin with."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def packed(
    branches: Sequence[tuple[Branch, T]], held: int, batch_tokens: int
) -> list[list[tuple[Branch, T]]]:
    """Returns branches of one level in batches: of rows that end, or of trunks that go on.

    Trunks of one batch differ in length by less than a factor of two.

    Args:
        branches: each with what belongs to it.
        held: tokens before them that their rows hold in the cache.
        batch_tokens: of one pass, padding included.
    """
    groups: dict[int, list[tuple[Branch, T]]] = {}
    for each in branches:
        ends = each[0].row is not None
        groups.setdefault(-1 if ends else len(each[0].tokens).bit_length(), []).append(each)
    least = -(-held // _CACHED)
    batches: list[list[tuple[Branch, T]]] = []
    for size in sorted(groups):
        ordered = sorted(groups[size], key=lambda each: (-_cost(each[0]), each[0].tokens))
        costs = [max(_cost(branch), least) for branch, _ in ordered]
        batches += pack(ordered, costs, batch_tokens)
    return batches


def _cost(branch: Branch) -> int:
    """Returns the tokens of a row, or those of a trunk or of all rows behind it."""
    return max(len(branch.tokens), branch.leaves)
