"""Inversion in closed form: the token whose vector is nearest to what was sent, or likeliest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_TEXTS = 256  # at once


class Attacker(Protocol):
    """Recovers tokens from what is sent of texts."""

    def recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``(T,)`` int64 token ids of ``(T, d)`` states, for each text."""
        ...


@dataclass(frozen=True, eq=False)
class NearestToken:
    """Compares each state with those of all tokens at its place; all pairs, in blocks.

    With `etas` it is the likeliest token, under noise of density ``~ eta(t)^d exp(-eta(t) |z|)``:

        argmax_t d ln eta(t) - eta(t) |h - x(t)| + ln prior(t)

    Where a state depends on its own token alone, no attacker without context does better.

    Args:
        sent: ``(rows, T)`` token ids -> ``(rows, T, d)`` states without noise. What it makes of a
            token should depend on the token and its place alone: a bottom without blocks.
        vocabulary: how many tokens there are.
        etas: ``(vocabulary,)``; None: the nearest. Where they follow from labels, which are sent
            as they are: one attacker for each label's texts.
        log_prior: ``(vocabulary,)``, read with `etas`; None: all alike.
    """

    sent: Callable[[Tensor], Tensor]
    vocabulary: int
    etas: Tensor | None = None
    log_prior: Tensor | None = None

    def recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``(T,)`` int64 token ids of ``(T, d)`` states, for each text."""
        found: list[Tensor] = []
        for start in range(0, len(states), _TEXTS):
            texts = states[start : start + _TEXTS]
            padded = self._nearest(pad_sequence(list(texts)))  # (places, texts)
            found += [padded[: len(text), i] for i, text in enumerate(texts)]
        return found

    def _nearest(self, states: Tensor) -> Tensor:
        places, texts, _ = states.shape
        best = torch.full((places, texts), -torch.inf, device=states.device)
        found = torch.zeros(places, texts, dtype=torch.int64, device=states.device)
        for tokens in self._arrangements(places):
            vectors = self.sent(tokens.to(states.device)).transpose(0, 1)  # (places, rows, d)
            distances = torch.cdist(states, vectors.to(states))  # (places, texts, rows)
            scores, rows = self._scores(distances, tokens.T, states.shape[2]).max(dim=2)
            tried = tokens.T.to(rows.device).gather(1, rows)
            found = torch.where(scores > best, tried, found)
            best = torch.maximum(best, scores)
        return found

    def _arrangements(self, places: int) -> list[Tensor]:
        """Returns ``(rows, places)`` texts in which together every token has every place."""
        rows = -(-self.vocabulary // places)
        tokens = torch.arange(rows * places).view(rows, places) % self.vocabulary
        return [tokens.roll(shift, dims=1) for shift in range(places)]

    def _scores(self, distances: Tensor, tokens: Tensor, width: int) -> Tensor:
        """Returns ``(places, texts, rows)`` of ``(places, rows)`` tokens."""
        if self.etas is None:
            return -distances
        etas = self.etas[tokens].to(distances)[:, None]
        scores = width * etas.log() - etas * distances  # d ln eta(t) - eta(t) |h - x(t)|
        if self.log_prior is not None:
            scores = scores + self.log_prior[tokens].to(distances)[:, None]
        return scores


def log_frequencies(texts: Sequence[Tensor], vocabulary: int) -> Tensor:
    """Returns ``(vocabulary,)`` float64 ``ln((n_t + 1) / (N + V))`` of public texts' tokens."""
    counts = torch.bincount(torch.cat(list(texts)), minlength=vocabulary).double() + 1
    return (counts / counts.sum()).log()
