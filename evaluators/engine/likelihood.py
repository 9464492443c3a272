"""Runs `Loglikelihood` requests; requests that differ in their last token only share a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.engine.batching import Answers, EngineRun, check_causal
from evaluators.engine.cached_rows import forget
from evaluators.engine.forward import check_finite, token_log_probs
from evaluators.engine.passes import Pass, passes_of
from evaluators.engine.population import tiled
from evaluators.engine.prefix_tree import Branch, grow
from evaluators.engine.resident import Resident
from evaluators.requests import Likelihood, Loglikelihood


@dataclass(frozen=True, eq=False)
class _Scored:
    """What is read off the rows of one pass.

    Args:
        kept: ``(kept,)`` flat positions whose logits are needed, each once.
        row: ``(tokens,)`` index into `kept` for every scored token.
        token: ``(tokens,)`` the scored tokens, request after request.
        starts: ``(requests,)`` where each request's tokens start in `token`.
        indices: ``(requests,)`` each request's index among all requests.
    """

    kept: Tensor
    row: Tensor
    token: Tensor
    starts: npt.NDArray[np.int64]
    indices: tuple[int, ...]


class LikelihoodJob:
    """All log-likelihood requests of a run, as padded tensors on the device.

    Right padding needs no attention mask: a causal model never looks right, and without a mask
    it takes the faster kernel. What rows begin with in common is computed once where that saves
    enough, and held in a cache of keys and values.
    """

    def __init__(
        self,
        requests: Sequence[tuple[int, Loglikelihood]],
        resident: Resident,
        *,
        batch_tokens: int,
    ) -> None:
        check_causal(resident, "log-likelihoods")
        length = resident.info.max_length
        rows: dict[tuple[int, ...], list[tuple[int, Loglikelihood]]] = {}
        for index, request in requests:
            rows.setdefault(_row(request, length), []).append((index, request))
        sharers = list(rows.values())
        answers = [max(len(request.continuation) for _, request in row) for row in sharers]
        able = resident.capabilities
        ends = [
            len(row) - most if able.shares and len(row) <= able.length else 0
            for row, most in zip(rows, answers, strict=True)
        ]
        together: list[tuple[Branch, int]] = []
        alone: list[tuple[Branch, int]] = []
        for branch in grow(list(rows), ends):
            long = branch.row is not None and len(branch.tokens) > able.length
            (alone if long else together).append((branch, 0))
        self._alone = passes_of(alone, resident, 1)
        self._passes = (*passes_of(together, resident, batch_tokens), *self._alone)
        self._scored = {
            one: _read_off(one, sharers, resident.device)
            for first in self._passes
            for one in first.all()
            if not one.following
        }
        self.most_rows = max(len(one.ends) for one in self._scored)

    def run(self, run: EngineRun) -> None:
        """Fills in a `Likelihood` for every request; see `Job`."""
        kept = {one: scored.kept for one, scored in self._scored.items()}
        for first in self._passes:
            most = max(one.input_ids.numel() for one in first.all())
            for part in run.population.parts(most):
                if first in self._alone:
                    run.population.choose(part, 1)
                    forget(run.resident.module, first.input_ids.repeat(len(part), 1))
                for one, logits in first.run(run, part, kept.__getitem__):
                    _answer(self._scored[one], logits, part, run.answers)


def _answer(scored: _Scored, logits: Tensor, candidates: range, answers: Answers) -> None:
    """Puts the answers that the logits ``(candidates * kept, vocabulary)`` give."""
    count = len(candidates)
    row = tiled(scored.row, count, len(scored.kept))
    token_log_p, greedy = token_log_probs(logits, row, scored.token.repeat(count))
    log_probs = token_log_p.view(count, -1).cpu().double().numpy()
    likeliest = greedy.view(count, -1).cpu().numpy()
    totals = np.add.reduceat(log_probs, scored.starts, axis=1)
    all_greedy = np.logical_and.reduceat(likeliest, scored.starts, axis=1)
    for line, candidate in enumerate(candidates):
        check_finite(log_probs[line], candidate, answers)
        pairs = zip(totals[line].tolist(), all_greedy[line].tolist(), strict=True)
        for index, (total, is_greedy) in zip(scored.indices, pairs, strict=True):
            answers.put(candidate, index, Likelihood(total, is_greedy))


def _row(request: Loglikelihood, max_length: int) -> tuple[int, ...]:
    """Returns what the model reads: all but the last token, the left end cut where too long."""
    if not request.context or not request.continuation:
        raise ValueError("a Loglikelihood request needs at least one token on either side")
    if len(request.continuation) > max_length:
        raise ValueError(
            f"a continuation has {len(request.continuation)} tokens, the model takes {max_length}"
        )
    return (request.context + request.continuation)[-(max_length + 1) :][:-1]


def _read_off(
    ending: Pass, sharers: Sequence[Sequence[tuple[int, Loglikelihood]]], device: torch.device
) -> _Scored:
    """Returns what to read off a pass, for the requests that share each of its rows."""
    width = ending.input_ids.shape[1]
    kept: dict[int, int] = {}  # flat position -> index, in order of first use
    row_of: list[int] = []
    tokens: list[int] = []
    starts: list[int] = []
    indices: list[int] = []
    for line, (row, length) in enumerate(ending.ends):
        for index, request in sharers[row]:
            starts.append(len(tokens))
            indices.append(index)
            first = line * width + length - len(request.continuation)
            for offset, token in enumerate(request.continuation):
                row_of.append(kept.setdefault(first + offset, len(kept)))
                tokens.append(token)

    def tensor(values: Any) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    return _Scored(
        kept=tensor(kept),
        row=tensor(row_of),
        token=tensor(tokens),
        starts=np.array(starts, dtype=np.int64),
        indices=tuple(indices),
    )
