"""Runs `TokenStatistics` requests: log-probabilities, and their mean and spread at each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluators.batching import Deadline, pack, pad_token, padded
from evaluators.forward import kept_logits, token_log_probs
from evaluators.requests import PerToken, Response, TokenStatistics
from evaluators.resident import Resident

_CHUNK_ELEMENTS = 1 << 25  # float32 log-probabilities held at once, twice: 256 MiB
_LEAST = -1e4  # stands for log 0, whose product with 0 would be NaN


@dataclass(frozen=True, eq=False)
class _Batch:
    """One forward pass.

    Args:
        input_ids: ``(rows, width)``, padded on the right.
        kept: ``(kept,)`` flat positions that predict a token, row after row.
        token: ``(kept,)`` the predicted tokens.
        lengths: ``(rows,)`` how many of them each row has.
        places: ``(rows,)`` places of the requests that each row answers.
    """

    input_ids: Tensor
    kept: Tensor
    token: Tensor
    lengths: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]


class TokenStatisticsJob:
    """All requests for token statistics of a run, as padded tensors on the device."""

    def __init__(
        self,
        requests: Sequence[tuple[int, TokenStatistics]],
        resident: Resident,
        *,
        batch_tokens: int,
    ) -> None:
        if not resident.info.causal:
            raise ValueError(
                f"{type(resident.module).__name__} is no causal language model; token statistics "
                "need one, so use a classification evaluator with it"
            )
        places: dict[tuple[int, ...], list[int]] = {}
        for place, request in requests:
            _check(request, resident.info.max_length)
            places.setdefault(request.tokens, []).append(place)
        ordered = sorted(places, key=lambda row: (-len(row), row))
        packed = list(pack(ordered, [len(row) - 1 for row in ordered], batch_tokens))
        self.most_rows = max(len(batch) for batch in packed)
        pad = pad_token(resident)
        self._batches = [
            _tensorise(batch, [tuple(places[row]) for row in batch], pad, resident.device)
            for batch in packed
        ]

    def run(self, resident: Resident, deadline: Deadline, answers: list[Response | None]) -> None:
        """Fills in a `PerToken` for every request; see `Job`."""
        for batch in self._batches:
            deadline.check()
            logits, _ = kept_logits(
                resident.module, batch.kept, input_ids=batch.input_ids, use_cache=False
            )
            rows = torch.arange(len(batch.token), device=logits.device)
            log_probs, _ = token_log_probs(logits, rows, batch.token)
            columns = torch.stack([log_probs, *vocabulary_statistics(logits)]).cpu().double()
            parts = torch.split(columns, batch.lengths, dim=1)
            for part, places in zip(parts, batch.places, strict=True):
                answer = PerToken(*part.numpy())
                for place in places:
                    answers[place] = answer


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
        mean = (p * log_p).sum(dim=-1)
        spread = log_p.sub_(mean.unsqueeze(-1)).square_().mul_(p).sum(dim=-1)
        means.append(mean)
        deviations.append(spread.sqrt_())
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
    places: Sequence[tuple[int, ...]],
    pad: int,
    device: torch.device,
) -> _Batch:
    input_ids, _ = padded([row[:-1] for row in rows], pad=pad, left=False, device=device)
    width = input_ids.shape[1]
    kept = [i * width + at for i, row in enumerate(rows) for at in range(len(row) - 1)]
    return _Batch(
        input_ids=input_ids,
        kept=torch.tensor(kept, dtype=torch.int64, device=device),
        token=torch.tensor([t for row in rows for t in row[1:]], device=device),
        lengths=tuple(len(row) - 1 for row in rows),
        places=tuple(places),
    )
