"""Runs `TokenStatistics` requests: log-probabilities, and their mean and spread at each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.batching import EngineRun, check_causal, pack, padded
from evaluators.engine.cached_rows import forget, kept_logits
from evaluators.engine.forward import check_finite, token_log_probs
from evaluators.engine.population import tiled
from evaluators.engine.resident import Resident
from evaluators.requests import PerToken, TokenStatistics

_CHUNK_ELEMENTS = 1 << 24  # float32 log-probabilities held at once, twice: 128 MiB
_LEAST = -1e4  # stands for log 0, whose product with 0 would be NaN


@dataclass(frozen=True, eq=False)
class _Batch:
    """One forward pass.

    Args:
        input_ids: ``(rows, width)``, padded on the right.
        kept: ``(kept,)`` flat positions that predict a token, row after row.
        token: ``(kept,)`` the predicted tokens.
        lengths: ``(rows,)`` how many of them each row has.
        requests: ``(rows,)`` indices of the requests that each row answers.
    """

    input_ids: Tensor
    kept: Tensor
    token: Tensor
    lengths: tuple[int, ...]
    requests: tuple[tuple[int, ...], ...]


class TokenStatisticsJob:
    """All requests for token statistics of a run, as padded tensors on the device."""

    def __init__(
        self,
        requests: Sequence[tuple[int, TokenStatistics]],
        resident: Resident,
        *,
        batch_tokens: int,
    ) -> None:
        check_causal(resident, "token statistics")
        indices: dict[tuple[int, ...], list[int]] = {}
        for index, request in requests:
            _check(request, resident.info.max_length)
            indices.setdefault(request.tokens, []).append(index)
        ordered = sorted(indices, key=lambda row: (-len(row), row))
        lengths = [len(row) - 1 for row in ordered]
        long = sum(length > resident.capabilities.length for length in lengths)
        packed = [[row] for row in ordered[:long]]
        packed += pack(ordered[long:], lengths[long:], batch_tokens)
        self.most_rows = max(len(batch) for batch in packed)
        self._batches = [
            _tensorise(batch, [tuple(indices[row]) for row in batch], resident) for batch in packed
        ]

    def run(self, run: EngineRun) -> None:
        """Fills in a `PerToken` for every request; see `Job`."""
        for batch in self._batches:
            for part in run.population.parts(batch.input_ids.numel()):
                run.deadline.check()
                run.population.choose(part, len(batch.input_ids))
                if batch.input_ids.shape[1] > run.resident.capabilities.length:
                    forget(run.resident.module, batch.input_ids.repeat(len(part), 1))
                statistics = _statistics(run.resident.module, batch, len(part))
                for candidate, rows in zip(part, statistics, strict=True):
                    check_finite(rows[0].numpy(), candidate, run.answers)
                    parts = torch.split(rows, list(batch.lengths), dim=1)
                    for columns, indices in zip(parts, batch.requests, strict=True):
                        answer = PerToken(*columns.numpy())
                        for index in indices:
                            run.answers.put(candidate, index, answer)


def _statistics(module: Any, batch: _Batch, candidates: int) -> Tensor:
    """Returns log-probability, mean and deviation: ``(candidates, 3, kept)`` float64."""
    ids, kept = batch.input_ids, tiled(batch.kept, candidates, batch.input_ids.numel())
    logits, _ = kept_logits(module, kept, input_ids=ids.repeat(candidates, 1), use_cache=False)
    rows = torch.arange(len(kept), device=logits.device)
    log_probs, _ = token_log_probs(logits, rows, batch.token.repeat(candidates))
    columns = torch.stack([log_probs, *vocabulary_statistics(logits)]).cpu().double()
    return columns.view(3, candidates, -1).transpose(0, 1)


def vocabulary_statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of log p(z) under p, for every row.

    ``mu = sum_z p(z) log p(z)``, ``sigma^2 = sum_z p(z) (log p(z) - mu)^2``: centred before it is
    squared, as the difference of two sums loses every digit where p is peaked.

    Args:
        logits: ``(rows, vocabulary)``; turned into float32 a chunk at a time. Minus infinity,
            a token that cannot be, counts for nothing.

    Returns:
        ``(rows,)`` float32 twice, in nats.

    Source: Zhang et al. 2024, Min-K%++, arXiv 2404.02936, eq. (3).
    """
    means, deviations = [], []
    for chunk in torch.split(logits, max(1, _CHUNK_ELEMENTS // logits.shape[-1])):
        log_p = chunk.float().log_softmax(dim=-1)
        p = log_p.exp()
        log_p.clamp_(min=_LEAST)
        mean = (p * log_p).sum(dim=-1)  # mu = sum_z p log p
        means.append(mean)
        variance = log_p.sub_(mean.unsqueeze(-1)).square_().mul_(p).sum(dim=-1)
        deviations.append(variance.sqrt_())  # sigma^2 = sum_z p (log p - mu)^2
    return torch.cat(means), torch.cat(deviations)


def _check(request: TokenStatistics, max_length: int) -> None:
    count = len(request.tokens)
    if not 2 <= count <= max_length + 1:  # the last token is predicted, not read
        raise ValueError(
            f"a TokenStatistics request needs 2 to {max_length + 1} tokens, what the model takes "
            f"and one more, got {count}"
        )


def _tensorise(
    rows: Sequence[tuple[int, ...]],
    requests: Sequence[tuple[int, ...]],
    resident: Resident,
) -> _Batch:
    input_ids, _ = padded([row[:-1] for row in rows], resident, left=False)
    width = input_ids.shape[1]
    kept = [i * width + column for i, row in enumerate(rows) for column in range(len(row) - 1)]
    return _Batch(
        input_ids=input_ids,
        kept=torch.tensor(kept, dtype=torch.int64, device=resident.device),
        token=torch.tensor([token for row in rows for token in row[1:]], device=resident.device),
        lengths=tuple(len(row) - 1 for row in rows),
        requests=tuple(requests),
    )
