"""Runs `Loglikelihood` requests; requests that differ in their last token only share a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.batching import Answers, Deadline, pack, pad_token, padded
from evaluators.forward import check_finite, kept_logits, token_log_probs
from evaluators.population import Population, tiled
from evaluators.requests import Likelihood, Loglikelihood
from evaluators.resident import Resident


@dataclass(frozen=True, eq=False)
class _Batch:
    """One forward pass.

    Args:
        input_ids: ``(rows, width)``, padded on the right.
        kept: ``(kept,)`` flat positions whose logits are needed, each once.
        row: ``(tokens,)`` index into `kept` for every scored token.
        token: ``(tokens,)`` the scored tokens, request after request.
        starts: ``(requests,)`` where each request's tokens start in `token`.
        places: ``(requests,)`` each request's place among all requests.
    """

    input_ids: Tensor
    kept: Tensor
    row: Tensor
    token: Tensor
    starts: npt.NDArray[np.int64]
    places: tuple[int, ...]


class LikelihoodJob:
    """All log-likelihood requests of a run, as padded tensors on the device.

    Right padding needs no attention mask: a causal model never looks right, and without a mask
    it takes the faster kernel.
    """

    def __init__(
        self,
        requests: Sequence[tuple[int, Loglikelihood]],
        resident: Resident,
        *,
        batch_tokens: int,
    ) -> None:
        if not resident.info.causal:
            raise ValueError(
                f"{type(resident.module).__name__} is no causal language model; log-likelihoods "
                "need one, so use a classification evaluator with it"
            )
        length = resident.info.max_length
        rows: dict[tuple[int, ...], list[tuple[int, Loglikelihood]]] = {}
        for place, request in requests:
            rows.setdefault(_row(request, length), []).append((place, request))
        ordered = sorted(rows, key=lambda row: (-len(row), row))
        packed = list(pack(ordered, [len(row) for row in ordered], batch_tokens))
        self.most_rows = max(len(batch) for batch in packed)
        pad = pad_token(resident)
        self._batches = [
            _tensorise(batch, [rows[row] for row in batch], pad, resident.device)
            for batch in packed
        ]

    def run(
        self, resident: Resident, population: Population, deadline: Deadline, answers: Answers
    ) -> None:
        """Fills in a `Likelihood` for every request; see `Job`."""
        for batch in self._batches:
            for part in population.parts(*batch.input_ids.shape):
                deadline.check()
                log_probs, greedy = _scored(resident.module, batch, len(part))
                totals = np.add.reduceat(log_probs, batch.starts, axis=1)
                all_greedy = np.logical_and.reduceat(greedy, batch.starts, axis=1)
                for row, candidate in enumerate(part):
                    check_finite(log_probs[row], candidate, answers)
                    for i, place in enumerate(batch.places):
                        found = Likelihood(float(totals[row, i]), bool(all_greedy[row, i]))
                        answers.put(candidate, place, found)


def _scored(
    module: Any, batch: _Batch, candidates: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Returns log-probabilities, and which are the likeliest, both ``(candidates, tokens)``."""
    ids, kept = batch.input_ids, tiled(batch.kept, candidates, batch.input_ids.numel())
    logits, _ = kept_logits(module, kept, input_ids=ids.repeat(candidates, 1), use_cache=False)
    row = tiled(batch.row, candidates, len(batch.kept))
    log_probs, greedy = token_log_probs(logits, row, batch.token.repeat(candidates))
    shape = candidates, len(batch.token)
    return log_probs.view(shape).cpu().double().numpy(), greedy.view(shape).cpu().numpy()


def _row(request: Loglikelihood, max_length: int) -> tuple[int, ...]:
    """Returns what the model reads: all but the last token, the left end cut where too long."""
    if not request.context or not request.continuation:
        raise ValueError("a Loglikelihood request needs at least one token on either side")
    if len(request.continuation) > max_length:
        raise ValueError(
            f"a continuation has {len(request.continuation)} tokens, the model takes {max_length}"
        )
    return (request.context + request.continuation)[-(max_length + 1) :][:-1]


def _tensorise(
    rows: Sequence[tuple[int, ...]],
    requests: Sequence[Sequence[tuple[int, Loglikelihood]]],
    pad: int,
    device: torch.device,
) -> _Batch:
    input_ids, _ = padded(rows, pad=pad, left=False, device=device)
    width = input_ids.shape[1]
    kept: dict[int, int] = {}  # flat position -> index, in order of first use
    row_of: list[int] = []
    tokens: list[int] = []
    starts: list[int] = []
    places: list[int] = []
    for i, (row, sharers) in enumerate(zip(rows, requests, strict=True)):
        for place, request in sharers:
            starts.append(len(tokens))
            places.append(place)
            first = i * width + len(row) - len(request.continuation)
            for offset, token in enumerate(request.continuation):
                row_of.append(kept.setdefault(first + offset, len(kept)))
                tokens.append(token)

    def tensor(values: Any) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    return _Batch(
        input_ids=input_ids,
        kept=tensor(kept),
        row=tensor(row_of),
        token=tensor(tokens),
        starts=np.array(starts, dtype=np.int64),
        places=tuple(places),
    )
