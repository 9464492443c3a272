"""Inversion by matching: the input is moved until the bottom makes of it what was sent."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evaluators.inversion.nearest import NearestToken
from experiments.attacks.learned import LearnedTokens
from experiments.experts.training.loop import cosine_rate

_TEXTS = 32  # at once


@dataclass(frozen=True, eq=False)
class MatchedInput:
    """Word embeddings that make what was sent likely, from a learned attacker's start.

    Descends ``sum_j eta_j |h_j - f(x)_j|``, the noise's negative log density, in x by Adam, and
    takes the nearest tokens. Of noised word embeddings these x are all that can be known: the
    likeliest token of each follows. Of noised states a free x can follow the noise, which no text
    makes: so place by place the nearest token and the learned attacker's first ones are put into
    the text, and stay where the text makes what was sent likelier:

        sum_j d ln eta(t_j) - eta(t_j) |h_j - f(t)_j| + ln prior(t_j)

    Args:
        learned: where it starts.
        forward: ``(texts, T, d)`` word embeddings and ``(texts, T)`` 0/1 mask ->
            ``(texts, T, d)`` states without noise, differentiable.
        table: ``(vocabulary, d)`` word embeddings.
        where: what the noise was put on; clean states: either.
        etas: ``(vocabulary,)`` of the noise; None: one for all.
        log_prior: ``(vocabulary,)``, read with `etas`; None: all alike.
        steps: of the descent.
        rate: of Adam, as a share of the table's standard deviation; falls along half a cosine.
        candidates: how many of the learned attacker's tokens are tried at a place.

    Source: forward matching is that of BiSR, arXiv 2409.00960, which descends cosine or squared
        distances; the noise's density and the text place by place are ours.
    """

    learned: LearnedTokens
    forward: Callable[[Tensor, Tensor], Tensor]
    table: Tensor
    where: Literal["embedding", "states"] = "states"
    etas: Tensor | None = None
    log_prior: Tensor | None = None
    steps: int = 100
    rate: float = 0.3
    candidates: int = 8

    def recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``(T,)`` int64 token ids of ``(T, d)`` states, for each text."""
        found: dict[int, Tensor] = {}
        for some in _by_length(states):
            found |= zip(some, self._recover([states[i] for i in some]), strict=True)
        return [found[i] for i in range(len(states))]

    def _recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Recovers texts of like lengths together."""
        mask = pad_sequence([torch.ones(len(each)) for each in states], batch_first=True)
        sent = pad_sequence(list(states), batch_first=True)
        mask = mask.to(sent.device)
        likely = pad_sequence(self.learned.candidates(states, self.candidates), batch_first=True)
        words = self._matched(sent, mask, likely[:, :, 0])
        nearest = pad_sequence(self._tokens(words, mask), batch_first=True)
        if self.where == "embedding":
            tokens = nearest
        else:
            tokens = self._improved(sent, mask, torch.cat([likely, nearest[:, :, None]], dim=2))
        return [row[: len(each)] for row, each in zip(tokens, states, strict=True)]

    def _matched(self, sent: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Returns ``(texts, T, d)`` word embeddings."""
        etas = self._etas(tokens)
        peak = self.rate * float(self.table.std())
        with torch.enable_grad():
            words = self.table[tokens].clone().requires_grad_(True)
            optimizer = torch.optim.Adam([words])
            for step in range(self.steps):
                optimizer.param_groups[0]["lr"] = cosine_rate(
                    step, self.steps, peak=peak, final=0.01, rising=0
                )
                gaps = (sent - self.forward(words, mask.long())).norm(dim=2)
                loss = (etas * gaps * mask).sum()  # sum_j eta_j |h_j - f(x)_j|
                (words.grad,) = torch.autograd.grad(loss, [words])
                optimizer.step()
        return words.detach()

    def _tokens(self, words: Tensor, mask: Tensor) -> list[Tensor]:
        """Returns ``(T,)`` the likeliest tokens of word embeddings."""
        noised = self.where == "embedding"
        etas, prior = (self.etas, self.log_prior) if noised else (None, None)
        nearest = NearestToken(lambda tokens: self.table[tokens], len(self.table), etas, prior)
        return nearest.recover([row[kept > 0] for row, kept in zip(words, mask, strict=True)])

    @torch.no_grad()
    def _improved(self, sent: Tensor, mask: Tensor, tried: Tensor) -> Tensor:
        """Returns ``(texts, T)`` tokens, from the first of ``(texts, T, candidates)``."""
        tokens = tried[:, :, 0].clone()
        best = self._log_density(sent, mask, tokens)
        for place in range(tokens.shape[1]):
            there = tried[:, place]
            other = (there != tokens[:, place, None]) & (mask[:, place, None] > 0)
            if not bool(other.any()):
                continue
            of = other.nonzero()[:, 0]  # (tried,) which text
            changed = tokens[of]
            changed[:, place] = there[other]
            scores = torch.full(there.shape, -torch.inf, device=sent.device)
            scores[other] = self._log_density(sent[of], mask[of], changed)
            top, at = scores.max(dim=1)
            better = top > best
            tokens[better, place] = there[better, at[better]]
            best = torch.maximum(best, top)
        return tokens

    def _log_density(self, sent: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """Returns ``(texts,)``: of what was sent, were these the tokens; but for a constant."""
        etas = self._etas(tokens)
        gaps = (sent - self.forward(self.table[tokens], mask.long())).norm(dim=2)
        scores = sent.shape[2] * etas.log() - etas * gaps  # d ln eta(t) - eta(t) |h - f(t)|
        if self.etas is not None and self.log_prior is not None:
            scores = scores + self.log_prior[tokens].to(scores)
        density: Tensor = (scores * mask).sum(dim=1)
        return density

    def _etas(self, tokens: Tensor) -> Tensor:
        if self.etas is None:
            return torch.ones(tokens.shape, device=tokens.device)
        return self.etas[tokens].to(self.table)


def _by_length(states: Sequence[Tensor]) -> Iterator[list[int]]:
    order = sorted(range(len(states)), key=lambda i: len(states[i]))
    return (order[start : start + _TEXTS] for start in range(0, len(order), _TEXTS))
