"""A language model's logits at chosen positions; the others are never built."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evaluators.engine.batching import Answers

_CHUNK_ELEMENTS = 1 << 26  # float32 logits held at once: 256 MiB


def kept_logits(module: Any, kept: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Returns the logits at `kept`, ``(kept, vocabulary)`` in the model's dtype, and the output.

    A hook in front of the output layer drops every other position. What the model does behind
    that layer (scaling, soft caps) still applies, as it works on each position alone.

    Args:
        module: a Hugging Face causal language model, which takes `inputs`.
        kept: ``(kept,)`` int64, positions counted through the flattened ``(rows, tokens)`` input.
    """
    head = module.get_output_embeddings()
    if head is None:
        output = module(**inputs)
        return output.logits.flatten(0, 1)[kept], output

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0].flatten(0, 1)[kept].unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        output = module(**inputs)
    finally:
        handle.remove()
    return output.logits.squeeze(0), output


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
