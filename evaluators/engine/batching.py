"""Rows of unequal length packed into padded batches under a budget of tokens."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from evaluators.engine.population import PopulationForward
from evaluators.engine.resident import Resident
from evaluators.requests import EvaluationError, Response, TransientFailure

T = TypeVar("T")
_MOST_TOKENS = 1 << 18  # a batch larger than this is no faster on any device


class Deadline:
    """Raises TransientFailure from `check` once `timeout_s` seconds have passed; None: never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._start = time.monotonic()
        self._timeout_s = timeout_s

    def check(self) -> None:
        """Raises TransientFailure if the time is up."""
        seconds = time.monotonic() - self._start
        if self._timeout_s is not None and seconds > self._timeout_s:
            raise TransientFailure(
                f"timed out after {seconds:.1f} s; the limit is {self._timeout_s:g} s: raise "
                "timeout_s, which makes it another run"
            )


class Answers:
    """The answers of a run so far, of every candidate, or why it has none."""

    def __init__(self, candidates: int, requests: int) -> None:
        self._answers: list[list[Response | None]] = [[None] * requests for _ in range(candidates)]
        self._failures: list[EvaluationError | None] = [None] * candidates

    def put(self, candidate: int, index: int, answer: Response) -> None:
        """Takes a candidate's answer to the request at `index`."""
        self._answers[candidate][index] = answer

    def fail(self, candidate: int, reason: str) -> None:
        """Takes the reason why a candidate cannot be scored; the first one stays.

        Raises:
            EvaluationError: with the first candidate's reason, as soon as all have failed.
        """
        self._failures[candidate] = self._failures[candidate] or EvaluationError(reason)
        first, *others = self._failures
        if first is not None and all(others):
            raise first

    def by_candidate(self) -> list[list[Response] | EvaluationError]:
        """Returns every candidate's answers, in the order of the requests, or its failure."""
        return [
            failure or [answer for answer in answers if answer is not None]
            for answers, failure in zip(self._answers, self._failures, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class EngineRun:
    """What the jobs of one run work with."""

    resident: Resident
    population: PopulationForward
    deadline: Deadline
    answers: Answers


class Job(Protocol):
    """All requests of one kind, planned and tensorised once."""

    @property
    def most_rows(self) -> int:
        """Rows of the largest batch; a smaller budget of tokens helps only where above 1."""
        ...

    def run(self, run: EngineRun) -> None:
        """Fills in every candidate's answers to the requests of this job."""
        ...


def check_causal(resident: Resident, what: str) -> None:
    """Raises ValueError if the model is no causal language model, by its kind or its numbers."""
    name = type(resident.module).__name__
    if not resident.info.causal:
        raise ValueError(
            f"{name} is no causal language model; {what} need one, so use a classification "
            "evaluator with it"
        )
    check_tokens(resident, what)
    if not resident.capabilities.causal:
        raise ValueError(
            f"{name} lets a token change the logits before it; {what} need a causal language "
            "model, so use another base"
        )


def check_tokens(resident: Resident, what: str) -> None:
    """Raises ValueError if the model gives no logits over its vocabulary for tokens alone."""
    error = resident.capabilities.error
    if error is not None:
        raise ValueError(
            f"{type(resident.module).__name__} gives no logits over its vocabulary where it is "
            f"given tokens alone ({error}); {what} need a language model of text, so use another "
            "base"
        )


def pack(rows: Sequence[T], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[T]]:
    """Yields `rows` in order in batches of at most `batch_tokens` padded tokens, at least one row.

    Rows come longest first, so that padding is small and memory peaks early.
    """
    batch: list[T] = []
    width = 0
    for row, length in zip(rows, lengths, strict=True):
        if batch and (len(batch) + 1) * max(width, length) > batch_tokens:
            yield batch
            batch, width = [], 0
        batch.append(row)
        width = max(width, length)
    if batch:
        yield batch


def grown(batch_tokens: int, used_bytes: int, free_bytes: int) -> int:
    """Returns `batch_tokens`, doubled as often as half of the free memory allows.

    The other half stays free: for candidates that are merged, and for what varies.

    `used_bytes` is the most memory that a run with `batch_tokens` took.

    Example:
        >>> grown(8192, 1 << 30, 9 << 30)
        32768
    """
    while used_bytes > 0 and 4 * used_bytes <= free_bytes and batch_tokens < _MOST_TOKENS:
        batch_tokens, used_bytes = 2 * batch_tokens, 2 * used_bytes
    return batch_tokens


def padded(
    rows: Sequence[Sequence[int]], resident: Resident, *, left: bool
) -> tuple[Tensor, Tensor]:
    """Returns token ids and attention mask, both ``(rows, longest)`` int64, on the device."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), _pad_token(resident), dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=torch.int64)
        mask[i, columns] = 1
    return ids.to(resident.device), mask.to(resident.device)


def _pad_token(resident: Resident) -> int:
    """Returns the id that fills short rows; any id does, as no scored position sees it."""
    pad = getattr(resident.info.tokenizer, "pad_token_id", None)
    if pad is None:
        pad = getattr(resident.module.config, "pad_token_id", None)
    return 0 if pad is None or pad < 0 else int(pad)
