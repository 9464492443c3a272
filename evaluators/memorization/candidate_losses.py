"""The losses of every canary's planted value and of its variants, as requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from evaluators.memorization.canaries import Canary
from evaluators.requests import Likelihood, Loglikelihood, Response
from evaluators.tasks.data import digest
from evaluators.tasks.encoding import prefix_token
from evaluators.tasks.subset import checked_places, of_places
from merging.arrays import Vector

ScoreOn: TypeAlias = Literal["record", "value"]


class CandidateLosses:
    """Asks how likely a record is with each candidate value in it; the planted one comes first.

    A loss is a sum over tokens, in nats, not a mean: a mean favours values with more tokens that
    are easily guessed. ``record``: of all tokens of the record; those that stand in front of the
    first difference are read but not counted, as they add the same to every candidate.
    ``value``: of the tokens that hold a character of the value; what follows is not even read.

    Args:
        tokenizer: a fast one, which says which characters a token stands for.
        canaries: whose values are compared.
        score_on: what of a record is scored.
        max_length: most tokens that the model reads.
        source: where the canaries come from.
    """

    def __init__(
        self,
        tokenizer: Any,
        canaries: Sequence[Canary],
        *,
        score_on: ScoreOn,
        max_length: int,
        source: str,
    ) -> None:
        if score_on not in ("record", "value"):
            raise ValueError(f"score_on must be 'record' or 'value', got {score_on!r}")
        self.source = source
        self.items = tuple(
            digest(score_on, each.text, each.start, each.end, each.variants) for each in canaries
        )
        asked = [_requests(tokenizer, each, score_on, max_length) for each in canaries]
        self.requests = tuple(request for each in asked for request in each)
        self._sizes = [len(each) for each in asked]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many candidates each canary has, the planted value among them."""
        return tuple(self._sizes)

    def losses(self, responses: Sequence[Response]) -> list[Vector]:
        """Returns each canary's losses ``(candidates,)`` in nats, the planted value's first."""
        totals = [-each.total for each in responses if isinstance(each, Likelihood)]
        ends = np.cumsum(self._sizes)[:-1]
        return np.split(np.array(totals, dtype=np.float64), ends)

    def token_counts(self) -> list[Vector]:
        """Returns how many tokens each loss is the sum of, ``(candidates,)`` for each canary."""
        counts = np.array([len(each.continuation) for each in self.requests], dtype=np.float64)
        return np.split(counts, np.cumsum(self._sizes)[:-1])

    def subset(self, items: Sequence[int]) -> CandidateLosses:
        """Returns the same on some of the canaries; see `Evaluator`."""
        places = checked_places(items, len(self.items), self.source)
        part = object.__new__(CandidateLosses)
        part.source = self.source
        part.items = tuple(self.items[place] for place in places)
        part.requests = of_places(self.requests, self._sizes, places)
        part._sizes = [self._sizes[place] for place in places]
        return part


def value_tokens(
    tokenizer: Any, text: str, start: int, end: int
) -> tuple[tuple[int, ...], int, int]:
    """Returns a text's tokens, and which of them hold characters `start` to `end`, from and to.

    A token that reaches over an end of the value counts as the value's.

    Raises:
        ValueError: the tokenizer cannot say which characters its tokens stand for.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "canaries need a fast tokenizer (tokenizer.json), which knows the characters of its "
            f"tokens; {type(tokenizer).__name__} is none"
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
    if not inside:
        raise ValueError(f"no token stands for {text[start:end]!r}: the tokenizer drops it")
    return tuple(encoded["input_ids"]), inside[0], inside[-1] + 1


def _requests(
    tokenizer: Any, canary: Canary, score_on: ScoreOn, max_length: int
) -> list[Loglikelihood]:
    prefix = prefix_token(tokenizer)
    spans = []
    for value in canary.candidates:
        text, end = canary.record(value), canary.start + len(value)
        tokens, first, last = value_tokens(tokenizer, text, canary.start, end)
        spans.append(((prefix, *tokens), first + 1, last + 1))
    if score_on == "value":
        rows = [(tokens[:last], first) for tokens, first, last in spans]
    else:
        same = _common([tokens for tokens, _, _ in spans])
        rows = [(tokens, same) for tokens, _, _ in spans]
    longest = max(len(tokens) for tokens, _ in rows) - 1
    if longest > max_length:
        raise ValueError(
            f"canary {canary.name!r} needs {longest} tokens, the model takes {max_length}: a "
            "value that is cut away looks memorized; shorten the record"
        )
    return [Loglikelihood(tokens[:first], tokens[first:]) for tokens, first in rows]


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """Returns how many first tokens all rows share, but leaves each at least one token."""
    shortest = min(len(row) for row in rows)
    same = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    return min(same, shortest - 1)
