"""How the candidates of a race are asked: some of the panel's requests at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evaluators.engine.model import Model
from evaluators.requests import Request, Response
from evaluators.tries import tries
from merging.weights import Weights
from search.loop.evaluation import attempt
from search.loop.pool import TaskQueue

_REMEMBERED = 8  # as many as an engine keeps plans of


@dataclass(frozen=True, eq=False)
class Question:
    """What one candidate is asked.

    Args:
        genome: of the candidate; the same object at every stage of a race.
        requests: which of the panel's requests, ascending.
    """

    genome: Any
    requests: tuple[int, ...]


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


class LocalAsker(TaskQueue[Question]):
    """Asks one candidate after the other; the one that is in the model already comes first.

    Between two `drop`s nothing else may write into the model.

    Args:
        model: holds one candidate at a time.
        base: weights that can be scored if anything can; see `tries`.
    """

    def __init__(
        self,
        decode: Callable[[Any], Weights],
        model: Model,
        requests: Sequence[Request],
        base: Weights,
    ) -> None:
        super().__init__()
        self._decode = decode
        self._model = model
        self._base = base
        # one that was asked lately is the same object, which an engine plans once
        self._part = lru_cache(_REMEMBERED)(lambda some: tuple(requests[i] for i in some))
        self._written: Any = None

    def drop(self) -> None:
        """Forgets the line, and which candidate is in the model."""
        super().drop()
        self._written = None

    def next(self) -> tuple[int, Answer]:
        """Asks the candidate that is in the model, else the first in the line."""
        held = (i for i, one in self._tasks.items() if one.genome is self._written)
        ticket = next(held, next(iter(self._tasks)))
        question = self._tasks.pop(ticket)
        requests = self._part(question.requests)
        responses: Sequence[Response] = ()
        with attempt() as tried:
            for one in tries(lambda: self._ask(self._base, requests)):
                with one:
                    responses = self._ask(question.genome, requests)
        return ticket, Answer(responses, tried.failure, tried.seconds)

    def _ask(self, genome: Any, requests: Sequence[Request]) -> list[Response]:
        """Writes a candidate, or the base's weights themselves, unless they are there; asks."""
        if genome is not self._written:
            self._written = None
            self._model.write(genome if genome is self._base else self._decode(genome))
            self._written = genome
        return self._model.run(requests)
