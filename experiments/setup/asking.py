"""How the candidates of a race are asked: the interface, and one after the other, here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from evaluators.requests import EvaluationError, Request, Response
from experiments.setup.scorer import Scorer
from merging.method import MergeError
from merging.weights import Weights

_REMEMBERED = 8  # as many as an engine keeps plans of


@dataclass(frozen=True)
class Answer:
    """What one candidate answered.

    Args:
        responses: to the requests, in order; empty where it failed.
        failure: why it failed; None: it did not.
        seconds: its own time, or its share.
    """

    responses: Sequence[Response] = ()
    failure: str | None = None
    seconds: float = 0.0


class RaceClient(Protocol):
    """Asks candidates of one generation; one after the other, or many at the same time."""

    def __call__(self, numbers: Sequence[int], slots: tuple[int, ...]) -> dict[int, Answer]:
        """Returns the answers by number.

        Args:
            numbers: of the candidates, in any order.
            slots: which of the panel's requests, ascending; the same for all candidates.
        """
        ...


RaceFactory: TypeAlias = Callable[[Sequence[Any]], RaceClient]
"""Genomes of a generation to what asks them."""


class Parts:
    """Parts of a panel's requests; one that was taken lately is the same object, planned once.

    Args:
        requests: all of them.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._parts: dict[tuple[int, ...], tuple[Request, ...]] = {}

    def __call__(self, slots: tuple[int, ...]) -> tuple[Request, ...]:
        """Returns the requests in these places."""
        found = self._parts.pop(slots, None)
        if found is None:
            found = tuple(self._requests[slot] for slot in slots)
        self._parts[slots] = found
        while len(self._parts) > _REMEMBERED:
            del self._parts[next(iter(self._parts))]
        return found


class LocalRaceClient:
    """Asks one candidate after the other; the one that is in the model already comes first.

    Args:
        decode: genome to weights.
        scorer: holds the model; its panel is not asked.
        parts: of the panel's requests.
        genomes: of the generation. While it is asked, nothing else may write into the model.
    """

    def __init__(
        self,
        decode: Callable[[Any], Weights],
        scorer: Scorer,
        parts: Parts,
        genomes: Sequence[Any],
    ) -> None:
        self._decode, self._scorer, self._parts = decode, scorer, parts
        self._genomes = genomes
        self._written: int | None = None

    def __call__(self, numbers: Sequence[int], slots: tuple[int, ...]) -> dict[int, Answer]:
        """Returns the answers by number; see `RaceClient`."""
        requests = self._parts(slots)
        order = sorted(numbers, key=lambda number: (number != self._written, number))
        return {number: self._answer(number, requests) for number in order}

    def _answer(self, number: int, requests: tuple[Request, ...]) -> Answer:
        """Returns what one answered; a model that cannot be asked is a failure, not an error."""
        began = time.perf_counter()
        responses: Sequence[Response] = ()
        failure: str | None = None
        try:
            if number != self._written:
                self._written = None
                self._scorer.model.write(self._decode(self._genomes[number]))
                self._written = number
            responses = self._scorer.model.run(requests)
        except (EvaluationError, MergeError) as error:
            failure = str(error) or type(error).__name__
        except (MemoryError, torch.cuda.OutOfMemoryError):
            failure = "out of memory"
        return Answer(responses, failure, time.perf_counter() - began)
