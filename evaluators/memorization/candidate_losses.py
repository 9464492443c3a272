"""The losses of every canary's planted value and of its variants."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from evaluators.evaluator import ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.memorization.blind import blind_ranking
from evaluators.memorization.canaries import Canary, chosen_canaries
from evaluators.requests import Loglikelihood, Response, totals_of
from evaluators.tasks.data import digest
from evaluators.tasks.encoding import language_tokenizer, prefix_token
from merging.arrays import Vector

ScoreOn: TypeAlias = Literal["record", "value"]


class CanaryAttack:
    """What evaluators of canaries have in common: the ranking that never sees the model."""

    items: ItemSet[Any]

    @cached_property
    def blind(self) -> dict[str, Score]:
        """Whether planted values can be told from variants without any model."""
        return {"blind_auc": blind_ranking([self.candidates(item) for item in self.items])}

    def candidates(self, item: TaskItem[Any]) -> list[tuple[int, ...]]:
        """Returns the tokens of every candidate, the planted value's first."""
        return [each.continuation for each in item.requests if isinstance(each, Loglikelihood)]

    def subset(self, indices: Sequence[int]) -> Self:
        """Returns this evaluator on some of its canaries; see `ItemSet.subset`."""
        part = on_subset(self, indices)
        part.__dict__.pop("blind", None)
        return part


def candidate_items(
    model: ModelInfo,
    data: str,
    *,
    task: str,
    score_on: ScoreOn,
    split: str | None,
    group: str | None,
    take: str | None,
    references: int | None,
    seed: int,
) -> ItemSet[Vector]:
    """Returns one item per canary, with a request for each candidate, the planted one first.

    The targets are how many tokens each loss is the sum of, ``(candidates,)``. A loss is a
    sum over tokens, in nats, not a mean: a mean favours values with more tokens that are easily
    guessed. ``record``: of all tokens of the record; those that stand in front of the
    first difference are read but not counted, as they add the same to every candidate.
    ``value``: of the tokens that hold a character of the value; what follows is not even read.

    Args:
        task: for messages. Those that are not named here choose canaries, see `chosen_canaries`.
        score_on: what of a record is scored.
    """
    canaries, source = chosen_canaries(
        data, split=split, group=group, take=take, references=references, seed=seed
    )
    tokenizer = language_tokenizer(model, f"{task} on {data}")
    if score_on not in ("record", "value"):
        raise ValueError(f"score_on must be 'record' or 'value', got {score_on!r}")
    items = []
    for canary in canaries:
        content = digest(score_on, canary.text, canary.start, canary.end, canary.variants)
        requests = _requests(tokenizer, canary, score_on, model.max_length)
        counts = np.array([len(request.continuation) for request in requests], np.float64)
        items.append(TaskItem(content, requests, counts))
    return ItemSet(source, tuple(items))


def candidate_losses(items: ItemSet[Vector], responses: Sequence[Response]) -> list[Vector]:
    """Returns each canary's losses ``(candidates,)`` in nats, the planted value's first."""
    losses = -totals_of(responses)
    return [losses[span] for span in items.spans]


def value_tokens(tokenizer: Any, canary: Canary, value: str) -> tuple[tuple[int, ...], int, int]:
    """Returns the tokens of a canary's record with `value` in it, and where the value's lie.

    A token that reaches over an end of the value counts as the value's.

    Returns:
        All tokens; the first of the value; behind its last.

    Raises:
        ValueError: the tokenizer cannot say which characters its tokens stand for.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "canaries need a fast tokenizer (tokenizer.json), which knows the characters of its "
            f"tokens; {type(tokenizer).__name__} is none"
        )
    start, end = canary.start, canary.start + len(value)
    encoded = tokenizer(
        canary.record(value), add_special_tokens=False, return_offsets_mapping=True
    )
    offsets = encoded["offset_mapping"]
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
    if not inside:
        raise ValueError(f"no token stands for {value!r}: the tokenizer drops it")
    return tuple(encoded["input_ids"]), inside[0], inside[-1] + 1


def _requests(
    tokenizer: Any, canary: Canary, score_on: ScoreOn, max_length: int
) -> tuple[Loglikelihood, ...]:
    prefix = prefix_token(tokenizer)
    records = [value_tokens(tokenizer, canary, value) for value in canary.candidates]
    if score_on == "value":
        rows = [((prefix, *tokens[:last]), first + 1) for tokens, first, last in records]
    else:
        same = _common([tokens for tokens, _, _ in records])
        rows = [((prefix, *tokens), same + 1) for tokens, _, _ in records]
    longest = max(len(tokens) for tokens, _ in rows) - 1
    if longest > max_length:
        raise ValueError(
            f"canary {canary.name!r} needs {longest} tokens, the model takes {max_length}: a "
            "value that is cut away looks memorized; shorten the record"
        )
    return tuple(Loglikelihood(tokens[:first], tokens[first:]) for tokens, first in rows)


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """Returns how many first tokens all rows share, but leaves each at least one token."""
    shortest = min(len(row) for row in rows)
    same = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    return min(same, shortest - 1)
