"""Several named evaluators on one split of their data, asked in one go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from evaluators.evaluator import Direction, Evaluator, Score
from evaluators.items import ItemSet
from evaluators.requests import EvaluationError, Request, Response
from evaluators.split import Split
from merging.seeding import generator


class Answering(Protocol):
    """What answers requests for the model of the moment: an engine, or a served model."""

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Returns the answers to `requests`, in order; see `Engine.run`."""
        ...


class Panel:
    """The tasks of one split; scores are named ``task/metric``.

    Args:
        split: what the scores are for: to rank candidates, to look again, or to report.
        evaluators: task name to evaluator.
        dropped: what the tasks have lost to panels before this one, a sentence each.
    """

    def __init__(
        self, split: Split, evaluators: Mapping[str, Evaluator], dropped: Sequence[str] = ()
    ) -> None:
        if not evaluators:
            raise ValueError(f"the {split} panel has no evaluator; name at least one")
        self.split, self.dropped = split, tuple(dropped)
        self.evaluators = dict(evaluators)
        requests: list[Request] = []
        self._parts: dict[str, slice] = {}
        for task, evaluator in evaluators.items():
            if "/" in task or not task:
                raise ValueError(f"task name {task!r} must not be empty or contain '/'")
            if not evaluator.items:
                raise ValueError(f"{split} task {task!r} ({evaluator.items.source}) has no items")
            start = len(requests)
            requests.extend(evaluator.items.requests)
            self._parts[task] = slice(start, len(requests))
        self._requests = tuple(requests)  # one object for all candidates: the engine plans once

    @property
    def requests(self) -> tuple[Request, ...]:
        """What the tasks ask, one after the other; the same object on every call."""
        return self._requests

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Direction of every ``task/metric``, in the order of the tasks."""
        return {
            f"{task}/{metric}": direction
            for task, evaluator in self.evaluators.items()
            for metric, direction in evaluator.metrics.items()
        }

    @property
    def main(self) -> Mapping[str, str]:
        """Task to its main ``task/metric``."""
        return {
            task: f"{task}/{next(iter(evaluator.metrics))}"
            for task, evaluator in self.evaluators.items()
        }

    @property
    def item_count(self) -> int:
        """Items of all tasks together."""
        return sum(len(evaluator.items) for evaluator in self.evaluators.values())

    @property
    def contents(self) -> Mapping[str, str]:
        """Task to the digest of its items; see `ItemSet.content`."""
        return {task: evaluator.items.content for task, evaluator in self.evaluators.items()}

    def subset(self, share: float, seed: int) -> Panel:
        """Returns the same tasks on some of their items, drawn without replacement.

        Args:
            share: of every task's items, in (0, 1]; at least one item of each is taken.
            seed: decides which, together with the task's name; they stay in their order.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        return Panel(
            self.split,
            {
                task: evaluator.subset(_drawn(len(evaluator.items), share, seed, task))
                for task, evaluator in self.evaluators.items()
            },
        )

    def evaluate(self, engine: Answering) -> dict[str, Score]:
        """Returns the scores of the model that `engine` holds; raises as `run` and `scores` do."""
        return self.scores(engine.run(self._requests))

    def scores(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the scores that answers give; raises EvaluationError if one is not finite."""
        scores: dict[str, Score] = {}
        for task, evaluator in self.evaluators.items():
            for metric, score in evaluator.score(responses[self._parts[task]]).items():
                if not math.isfinite(score.value):
                    raise EvaluationError(f"{task}/{metric} is {score.value}, no finite score")
                scores[f"{task}/{metric}"] = score
        return scores

    def check_apart(self, other: Panel) -> None:
        """Raises ValueError if the two panels read the same data or have items in common."""
        for task, evaluator in self.evaluators.items():
            for other_task, other_evaluator in other.evaluators.items():
                pair = f"{self.split} task {task!r} and {other.split} task {other_task!r}"
                items, others = evaluator.items, other_evaluator.items
                _check_sources(pair, items, others)
                if shared := _shared(items, others):
                    raise ValueError(
                        f"{pair} share {len(shared)} of {len(items)} items, for example item "
                        f"{shared[0]} of the first; give them different items"
                    )

    def without(self, earlier: Sequence[Panel]) -> Panel:
        """Returns this panel without the items of others; `dropped` counts them, pair by pair.

        Raises:
            ValueError: a task reads the same data as one of the others, or would lose all items.
        """
        parts = {
            task: _without(f"{self.split} task {task!r}", evaluator, earlier)
            for task, evaluator in self.evaluators.items()
        }
        dropped = [line for _, lines in parts.values() for line in lines]
        return Panel(self.split, {task: left for task, (left, _) in parts.items()}, dropped)


def _without(
    name: str, evaluator: Evaluator, earlier: Sequence[Panel]
) -> tuple[Evaluator, list[str]]:
    items, lost, lines = evaluator.items, set[int](), list[str]()
    for panel in earlier:
        for task, other in panel.evaluators.items():
            _check_sources(f"{panel.split} task {task!r} and {name}", items, other.items)
            if shared := _shared(items, other.items):
                lost.update(shared)
                count = f"{len(shared)} of {len(items)} items"
                lines.append(f"{name}: {count} are {panel.split} items of {task!r} too")
    left = [i for i in range(len(items)) if i not in lost]
    if not left:
        raise ValueError(f"{', '.join(lines)}, so that none is left; give them different items")
    kept = evaluator.subset(left) if lost else evaluator
    return kept, [f"{line}: dropped" for line in lines]


def _drawn(count: int, share: float, seed: int, task: str) -> list[int]:
    taken = max(1, round(share * count))
    order = torch.randperm(count, generator=generator("items", seed, task))
    return sorted(order[:taken].tolist())


def _check_sources(pair: str, items: ItemSet[Any], others: ItemSet[Any]) -> None:
    if items.source == others.source:
        raise ValueError(f"{pair} both read {items.source}; give them different items")


def _shared(items: ItemSet[Any], others: ItemSet[Any]) -> list[int]:
    """Returns which of `items` the others hold too."""
    held = set(others.digests)
    return [i for i, digest in enumerate(items.digests) if digest in held]
