"""The few directions of the states that tell of the class; what else a state holds is not sent."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, gelu
from torch.nn.utils.rnn import pad_sequence

from experiments.experts.training.loop import (
    Schedule,
    adamw,
    clipped_step,
    gradient_of,
    train_on,
)
from merging.seeding import generator, stable_seed


@dataclass(frozen=True)
class DirectionSettings:
    """How directions follow from labelled states: a small classifier reads them, at the customer.

    Args:
        count: of directions. Noise of one eta is as long as they are many: d / eta in all d
            dimensions, count / eta in these.
        steps: of the classifier's training; `batch`: sentences of each.
        learning_rate: at its start; it falls along a line to zero.
        dropout: of what it reads.
        seed: of its start and of the order of the sentences.

    Raises:
        ValueError: an option has no meaning; names it.
    """

    count: int = 8
    steps: int = 400
    batch: int = 64
    learning_rate: float = 3e-3
    dropout: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "steps", "batch"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"directions.{name} must be 1 or more, got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"directions.dropout must be from 0 to below 1, got {self.dropout}")

    def reader(
        self, states: Sequence[Tensor], labels: Sequence[int], *, classes: int, public: Tensor
    ) -> "Reader":
        """Returns the trained classifier.

        Args:
            states: ``(T, d)`` of each labelled sentence.
            public: ``(n, d)`` states of public texts, which it is scaled by.

        Raises:
            ValueError: public states span fewer dimensions than there should be directions.
        """
        covariance = torch.cov(public.double().T, correction=0)
        span = int(torch.linalg.matrix_rank(covariance, hermitian=True))
        if self.count > span:
            raise ValueError(
                f"directions.count={self.count} is more than the {span} dimensions that the "
                f"states of {len(public)} public tokens span: set fewer, or give more public texts"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, "directions"))
            model = Reader(public, self.count, classes, self.dropout)
        targets = torch.tensor(labels)
        draw = generator("directions", self.seed)
        size = (self.steps, min(self.batch, len(states)))
        schedule = Schedule(self.steps, self.batch, self.learning_rate, fall="linear")
        optimizer = adamw(model, weight_decay=0.01)
        train_on(
            model,
            torch.randint(len(states), size, generator=draw).tolist(),
            gradient_of(
                lambda batch: cross_entropy(model([states[i] for i in batch]), targets[batch])
            ),
            clipped_step(model, optimizer, 1.0),
            optimizer,
            rate_at=schedule.rate_at,
            dropout=stable_seed(self.seed, "directions", "dropout"),
            on_step=lambda loss: None,
        )
        return model.train(False)


class Reader(nn.Module):
    """Classifies a text by `count` numbers of each token, u = W (h - mean) / deviation.

    Two summaries of these are read: their mean under an attention that they give themselves, and
    the mean of ``gelu(u)``.
    """

    def __init__(self, public: Tensor, count: int, classes: int, dropped: float) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", public.float().mean(dim=0))
        self.register_buffer("deviation", public.float().std(dim=0).clamp(min=1e-6))
        self.numbers = nn.Linear(public.shape[1], count, bias=False)
        self.attention = nn.Linear(count, 1)
        self.head = nn.Linear(2 * count, classes)
        self._dropped = dropped

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Returns ``(texts, classes)`` logits of ``(T, d)`` states each."""
        rows = pad_sequence([(h - self.mean) / self.deviation for h in states], batch_first=True)
        mask = pad_sequence([torch.ones(len(h)) for h in states], batch_first=True) > 0
        u = self.numbers(dropout(rows, self._dropped, self.training))
        asked = self.attention(u.tanh())[..., 0].masked_fill(~mask, -torch.inf)
        attended = (asked.softmax(dim=1)[..., None] * u).sum(dim=1)
        mean = (gelu(u) * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        logits: Tensor = self.head(torch.cat([attended, mean], dim=1))
        return logits

    @torch.no_grad()
    def directions(self, public: Tensor) -> "Directions":
        """Returns what it reads, scaled so that ``(n, d)`` public states have variance 1 there."""
        rows = public.double()
        mean = rows.mean(dim=0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        read = self.numbers.weight.double() / self.deviation.double()
        # A = L^-1 R with L L' = R C R', so that A C A' = I
        lower = torch.linalg.cholesky(read @ covariance @ read.T)
        into = torch.linalg.solve_triangular(lower, read, upper=False)
        return Directions(mean, into, covariance @ into.T)


@dataclass(frozen=True, eq=False)
class Directions:
    """Coordinates y = A (h - mean) of a state h, and mean + B y, its best guess from these.

    With A C A' = I and B = C A', C the covariance of public states; so A B = I, and who sees
    mean + B y can tell y.

    Args:
        mean: ``(d,)`` float64; `into`: A, ``(count, d)``; `back`: B, ``(d, count)``.
    """

    mean: Tensor
    into: Tensor
    back: Tensor

    def coordinates(self, states: Tensor) -> Tensor:
        """Returns ``(..., count)`` of ``(..., d)`` states, of their dtype."""
        return (states - self.mean.to(states)) @ self.into.T.to(states)

    def states(self, coordinates: Tensor) -> Tensor:
        """Returns ``(..., d)`` of ``(..., count)`` coordinates, of their dtype."""
        return self.mean.to(coordinates) + coordinates @ self.back.T.to(coordinates)

    @property
    def digest(self) -> str:
        """Tells them from others, and whoever guesses the labelled sentences that these are it."""
        parts = (each.contiguous().numpy().tobytes() for each in (self.mean, self.into, self.back))
        return hashlib.sha256(b"|".join(parts)).hexdigest()[:12]

    def words(self, name: str) -> str:
        """Returns what they are."""
        return (
            f"{len(self.into)} directions {name} that follow from the labelled sentences, as "
            "they are, and tell of them"
        )

    def save(self, file: Path) -> None:
        """Writes them in one piece, for `read`."""
        named = {"mean": self.mean, "into": self.into, "back": self.back}
        draft = file.with_suffix(".tmp")
        safetensors.torch.save_file({n: t.contiguous() for n, t in named.items()}, draft)
        os.replace(draft, file)

    @classmethod
    def read(cls, file: Path) -> "Directions":
        """Returns what `save` wrote; ValueError: the file is damaged."""
        try:
            return cls(**safetensors.torch.load_file(file))
        except (SafetensorError, TypeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}): put it back, or start in an empty folder"
            ) from error
