"""Which tokens tell of a class, and how much less noise they get."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search.privacy.private_noise import SecretNoise, discrete_laplace, laplace_scale


@dataclass(frozen=True)
class ContributingTokens:
    """Factors on eta, by token: more than 1 where a token tells of a class.

    The length of the noise tells of a token's factor: tokens of different factors have no bound
    that metric privacy would give, only those of one factor. An attacker that knows the factors
    weighs a candidate t by ``d ln eta(t) - eta(t) |z - x(t)|``, which nearest neighbours ignore.

    Args:
        factors: ``(classes, vocabulary)`` float64.
        epsilon: what the counts cost that they follow from; None: they were read as they are, so
            that the factors follow from the labels.
        by_class: a sentence whose label is known has the factors of its class, so that noise tells
            of the label; else, and without a label, those that are the largest of any class.
    """

    factors: Tensor
    epsilon: float | None = None
    by_class: bool = False

    @property
    def follows_labels(self) -> bool:
        """Whether factors tell of labels beyond what counts with noise tell."""
        return self.epsilon is None or self.by_class

    def of(self, tokens: Tensor, label: int | None = None) -> Tensor:
        """Returns ``(T,)`` float64 of ``(T,)`` token ids."""
        if self.by_class and label is not None:
            return self.factors[label, tokens]
        return self.factors[:, tokens].amax(dim=0)  # max over c of eta(c, t) / eta_base


@dataclass(frozen=True)
class ContributingSettings:
    """How factors follow from labelled sentences.

    With n(c, t) counts, N_c their sum over t, p(t|c) = n(c, t) / N_c and xi = 1 / max_k N_k:

        UI(c, t) = sum_{k != c} ln(p(t|c) / (p(t|k) + 3 xi)), 0 where t is not seen in c
        factor(c, t) = max(UI(c, t), floor)

    Args:
        smoothing: added to every count before it is read; 1: add-one.
        floor: least factor.
        epsilon: counts are released with discrete Laplace noise of scale clip / epsilon, so that
            factors tell no more of a sentence and its label; None: counts as they are.
        clip: with epsilon: most tokens of a sentence that count, each once.
        by_class: of `ContributingTokens`.

    Raises:
        ValueError: an option has no meaning; names it.

    Source: utility as in Split-and-Privatize, arXiv 2312.15603, with constants of its authors'
        public code; counts under differential privacy are not theirs.
    """

    smoothing: float = 0.0
    floor: float = 0.6
    epsilon: float | None = None
    clip: int = 8
    by_class: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smoothing) and self.smoothing >= 0):
            raise ValueError(f"contributing.smoothing must be 0 or more, got {self.smoothing}")
        for name in ("floor", "epsilon", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"contributing.{name} must be above 0 and finite, got {value}")

    def fitted(
        self,
        sentences: Sequence[Tensor],
        labels: Sequence[int],
        *,
        vocabulary: int,
        classes: int,
        noise: SecretNoise,
    ) -> ContributingTokens:
        """Returns the factors of all tokens.

        Args:
            sentences: ``(T,)`` token ids each, without tokens that every sentence has.
            vocabulary: public, as is `classes`.
            noise: of the counts; read with `epsilon` alone.

        Raises:
            ValueError: there is no label for each sentence, or a label or token is none of these.
        """
        if len(sentences) != len(labels):
            raise ValueError(f"{len(sentences)} sentences have {len(labels)} labels")
        counts = torch.zeros(classes, vocabulary, dtype=torch.int64)
        for tokens, label in zip(sentences, labels, strict=True):
            counted = tokens if self.epsilon is None else _clipped(tokens, self.clip)
            if not 0 <= label < classes or bool(((counted < 0) | (counted >= vocabulary)).any()):
                raise ValueError(
                    f"label {label} or a token of its sentence lies outside of {classes} classes "
                    f"and {vocabulary} tokens"
                )
            counts[label] += torch.bincount(counted, minlength=vocabulary)
        if self.epsilon is not None:
            counts = _released(counts, laplace_scale(self.clip, self.epsilon), noise)
        factors = utility(counts.double() + self.smoothing).clamp(min=self.floor)
        return ContributingTokens(factors, self.epsilon, self.by_class)


def utility(counts: Tensor) -> Tensor:
    """Returns UI, ``(classes, vocabulary)``, of counts of the same shape; float64."""
    totals = counts.sum(dim=1)  # N_c
    shares = counts / totals.clamp(min=1)[:, None]  # p(t|c)
    others = (shares + 3 / totals.max().clamp(min=1)).log()  # ln(p(t|k) + 3 xi)
    classes = len(counts)
    # sum_{k != c} (ln p(t|c) - ln(p(t|k) + 3 xi))
    found = (classes - 1) * shares.log() - (others.sum(dim=0) - others)
    return torch.where(counts > 0, found, 0.0)


def _clipped(tokens: Tensor, clip: int) -> Tensor:
    """Returns at most `clip` different tokens: the highest ids, which vocabularies give to rarer.

    It reads one sentence alone, so that to leave a sentence out changes counts by `clip` in all.
    """
    different = sorted(set(tokens.tolist()))
    return torch.tensor(different[-clip:], dtype=torch.int64)


def _released(counts: Tensor, scale: int, noise: SecretNoise) -> Tensor:
    """Returns the counts with noise; what no noise of n cells is likely to reach is 0, for free.

    One of n draws of ``P(k) ~ exp(-|k| / s)`` is above ``s ln n`` with a chance below 1/2.
    """
    # Noise of these very counts: that of others must not cancel it.
    digest = hashlib.sha256(counts.numpy().tobytes()).hexdigest()
    bits = noise.bits("token counts", scale, digest)
    drawn = torch.from_numpy(discrete_laplace(bits, scale, counts.numel()))
    noised = counts + drawn.view_as(counts)
    return torch.where(noised > scale * math.log(counts.numel()), noised, 0)
