"""Inversion by a classifier of tokens, trained on the states of public texts."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from evaluators.inversion.nearest import log_frequencies
from experiments.experts.training.loop import Schedule, adamw, clipped_step, gradient_of, train_on
from merging.seeding import generator, stable_seed

Sent: TypeAlias = Callable[[Sequence[int], int], Sequence[Tensor]]
"""(which public texts, draw) -> ``(T, d)`` states of each as a vendor is sent them: noise, if any,
is drawn anew for every draw."""

_HOPELESS = 1000.0
_ROWS = 256  # tokens at once, each beside the whole vocabulary
_RIDGE_TOKENS = 20_000
_LEAST_VARIANCE = 1e-3  # of the remainder, as a share of all: clean states leave none


@dataclass(frozen=True)
class LearnedSettings:
    """How a token classifier is trained.

    Args:
        width: of the hidden layer, which reads two neighbours on either side.
        negatives: random tokens that a step tells the batch's own from.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(300, 32, 1e-3))
    width: int = 128
    negatives: int = 2000
    seed: int = 0


class LearnedTokens(nn.Module):
    """Logit of a token t where a state h stands, e_t its word embedding less the mean of all:

        (q(h) . e_t - r |e_t|^2 / 2) / v + b_t

    q is a ridge regression of h onto e, plus a convolution of h and its neighbours. It starts as
    that regression, with v the variance of its remainder, r the share that it explains, b the log
    frequencies of public texts: the Bayes rule were q normal about ``r e_t``, which is the nearest
    embedding of clean states and the most frequent token of mere noise. Word embeddings stay as
    they are, so that tokens can be recovered that no public text holds.
    """

    def __init__(self, table: Tensor, states_width: int, width: int) -> None:
        super().__init__()
        embedded = table.shape[1]
        self.table: Tensor
        self.explained: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("table", table.detach().float().clone())
        self.register_buffer("explained", torch.ones(()))
        self.register_buffer("mean", torch.zeros(states_width))
        self.register_buffer("deviation", torch.ones(states_width))
        self.regression = nn.Linear(states_width, embedded)
        self.hidden = nn.Conv1d(states_width, width, kernel_size=5, padding=2)
        self.out = nn.Linear(width, embedded)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.log_variance = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(len(table)))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Returns q, ``(tokens of all, d)``, of ``(T, d)`` states."""
        padded = pad_sequence([self._standardised(each) for each in states], batch_first=True)
        context = nn.functional.gelu(self.hidden(padded.transpose(1, 2))).transpose(1, 2)
        q = self.regression(padded) + self.out(context)
        return torch.cat([row[: len(each)] for row, each in zip(q, states, strict=True)])

    def logits(self, q: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Returns ``(n, tokens)`` of ``(n, d)`` q; None: of the whole vocabulary."""
        table = self.table if tokens is None else self.table[tokens]
        bias = self.bias if tokens is None else self.bias[tokens]
        fit = q @ table.T - self.explained * table.square().sum(dim=1) / 2
        return fit * (-self.log_variance).exp() + bias

    @torch.no_grad()
    def candidates(self, states: Sequence[Tensor], count: int) -> list[Tensor]:
        """Returns ``(T, count)`` int64 of each text: the likeliest tokens, best first.

        The first stands in the place of those that are `_HOPELESS` times less likely.
        """
        found = []
        for q in torch.split(self(states), _ROWS):
            logits, tokens = self.logits(q).topk(count, dim=1)
            hopeless = logits < logits[:, :1] - math.log(_HOPELESS)
            found.append(torch.where(hopeless, tokens[:, :1], tokens))
        return list(torch.split(torch.cat(found), [len(each) for each in states]))

    def recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``(T,)`` int64 token ids of ``(T, d)`` states, for each text."""
        return [each[:, 0] for each in self.candidates(states, 1)]

    @torch.no_grad()
    def start(self, states: Sequence[Tensor], texts: Sequence[Tensor]) -> None:
        """Fits the regression of ``(T, d)`` states onto the embeddings of ``(T,)`` token ids."""
        rows = torch.cat(list(states))
        self.mean.copy_(rows.mean(dim=0))
        self.deviation.copy_(rows.std(dim=0).clamp(min=1e-6))
        x = self._standardised(rows).double()
        tokens = torch.cat(list(texts)).to(x.device)
        self.table -= self.table[tokens].mean(dim=0)
        e = self.table[tokens].double()
        gram = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(gram, x.T @ e)  # (X'X + I)^-1 X'E
        variance, left = float(e.square().mean()), float((e - x @ weight).square().mean())
        self.regression.weight.copy_(weight.T)
        self.regression.bias.zero_()
        self.explained.fill_(1 - left / variance)
        self.log_variance.fill_(math.log(max(left, _LEAST_VARIANCE * variance)))

    def _standardised(self, states: Tensor) -> Tensor:
        return (states - self.mean) / self.deviation


def learn(
    sent: Sent,
    texts: Sequence[Tensor],
    table: Tensor,
    settings: LearnedSettings | None = None,
    *,
    on_step: Callable[[float], None] = lambda loss: None,
) -> LearnedTokens:
    """Returns a classifier trained on public texts; of cross-entropy over all tokens.

    The sum over the vocabulary is estimated: the batch's own tokens and random others, which
    stand for all.

    Args:
        sent: states of public texts, clean or with noise: an attacker of noised states should be
            trained on such.
        texts: ``(T,)`` token ids of each.
        table: ``(vocabulary, d)`` word embeddings, frozen.
        on_step: is told every step's loss.

    Raises:
        ValueError: there are no texts.
    """
    if not texts:
        raise ValueError("an attacker needs public texts to learn from, there are none")
    settings = settings or LearnedSettings()
    draw = generator("learned tokens", settings.seed)
    some = torch.randperm(len(texts), generator=draw).tolist()
    ends = torch.tensor([len(texts[i]) for i in some]).cumsum(0)
    some = some[: int((ends < _RIDGE_TOKENS).sum()) + 1]
    first = list(sent(some, 0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("learned tokens", settings.seed))
        model = LearnedTokens(table, first[0].shape[1], settings.width).to(table.device)
    model.start(first, [texts[i] for i in some])
    with torch.no_grad():
        model.bias.copy_(log_frequencies(texts, len(table)))

    def loss_of(batch: tuple[Sequence[int], int]) -> Tensor:
        own = torch.cat([texts[i] for i in batch[0]]).to(table.device)
        among, places = torch.unique(own, return_inverse=True)
        others = torch.randint(len(table), (settings.negatives,), generator=draw)
        others = others[~torch.isin(others, among.cpu())].to(among.device)
        q = model(sent(*batch))
        # Z ~ sum over the batch's tokens + (V - own) / drawn * sum over the drawn
        weight = math.log(max(1, len(table) - len(among)) / max(1, len(others)))
        logits = torch.cat([model.logits(q, among), model.logits(q, others) + weight], dim=1)
        return nn.functional.cross_entropy(logits, places)

    optimizer = adamw(model, weight_decay=0.0)
    train_on(
        model,
        _batches(len(texts), settings.schedule, draw),
        gradient_of(loss_of),
        clipped_step(model, optimizer, 1.0),
        optimizer,
        rate_at=settings.schedule.rate_at,
        dropout=settings.seed,
        on_step=on_step,
    )
    return model


def _batches(
    texts: int, schedule: Schedule, draw: torch.Generator
) -> Iterator[tuple[list[int], int]]:
    """Yields which texts a step reads, and its number, from 1; none twice before all once."""
    left: list[int] = []
    for step in range(1, schedule.steps + 1):
        if len(left) < min(schedule.batch, texts):
            left = torch.randperm(texts, generator=draw).tolist()
        yield left[: schedule.batch], step
        left = left[schedule.batch :]
