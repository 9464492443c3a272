"""Log-probabilities from logits, in chunks, and a check that they are numbers."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.engine.batching import Answers

_CHUNK_ELEMENTS = 1 << 24  # float32 logits held at once, twice: 128 MiB


def token_log_probs(logits: Tensor, row: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log-probabilities of `token`, and whether each is the likeliest of its row.

    Args:
        logits: ``(rows, vocabulary)``; turned into float32 a chunk at a time.
        row: ``(tokens,)`` the row of `logits` that predicts each `token`.

    Returns:
        ``(tokens,)`` float32, which may not be finite, and ``(tokens,)`` bool.
    """
    peaks, bests, log_sums = [], [], []
    for chunk in torch.split(logits, max(1, _CHUNK_ELEMENTS // logits.shape[-1])):
        logit = chunk.float()
        peak, best = logit.max(dim=-1)
        log_sums.append((logit - peak.unsqueeze(-1)).exp_().sum(dim=-1).log_())
        peaks.append(peak)
        bests.append(best)
    # log p = (x - max) - log sum exp(x - max): the larger numbers cancel first
    log_probs = logits[row, token].float() - torch.cat(peaks)[row] - torch.cat(log_sums)[row]
    return log_probs, torch.cat(bests)[row] == token


def check_finite(log_probs: npt.NDArray[np.float64], candidate: int, answers: Answers) -> None:
    """Fails the candidate if one of its log-probabilities, ``(tokens,)``, is NaN or infinite."""
    bad = int((~np.isfinite(log_probs)).sum())
    if bad:
        answers.fail(
            candidate,
            f"{bad} of {len(log_probs)} scored tokens have no finite log-probability: the "
            "candidate's weights give NaN or infinite logits",
        )
