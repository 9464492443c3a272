"""Which tokens tell of a class, and how much less noise they get."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from merging.privacy.accounting import check_delta
from search.privacy.private_noise import SecretNoise, discrete_gaussian

_GRID = 2**6  # parts of a count, so that the whole scale of the noise is nearly the asked one
_LEAST_EPSILON = 0.001  # for which the sampler of noise has numbers large enough
_LIFTED = 10  # tokens that noise alone may lift above the floor


@dataclass(frozen=True)
class ContributingSettings:
    """How factors on eta follow from labelled sentences.

    With n(c, t) counts, N_c their sum over t, p(t|c) = n(c, t) / N_c and xi = 1 / max_k N_k:

        UI(c, t) = sum_{k != c} ln(p(t|c) / (p(t|k) + 3 xi)), 0 where t is not seen in c
        factor(c, t) = max(UI(c, t), floor)

    Counts with noise may be below 0, which is read as 0, and 3 xi is larger by what noise is
    likely to reach. With few thousand sentences and epsilon of about 2 most tokens that tell of a
    class are lost in the noise, which costs accuracy and no privacy.

    Args:
        smoothing: added to every count before it is read; 1: add-one.
        floor: least factor.
        epsilon: counts are released with discrete Gaussian noise, so that factors tell no more of
            a sentence and its label; None: counts as they are.
        delta: with epsilon; below 1 / sentences.
        clip: with epsilon: most tokens of a sentence that count, each once.
        by_class: a sentence whose label is known has the factors of its class, so that noise tells
            of the label; false, or without a label: the largest factors of any class.

    Raises:
        ValueError: an option has no meaning; names it.

    Source: utility as in Split-and-Privatize, arXiv 2312.15603, with constants of its authors'
        public code; counts under differential privacy are not theirs.
    """

    smoothing: float = 0.0
    floor: float = 0.6
    epsilon: float | None = None
    delta: float = 1e-5
    clip: int = 16
    by_class: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.smoothing) and self.smoothing >= 0):
            raise ValueError(f"contributing.smoothing must be 0 or more, got {self.smoothing}")
        for name in ("floor", "clip"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"contributing.{name} must be above 0 and finite, got {value}")
        if self.epsilon is not None and not _LEAST_EPSILON <= self.epsilon < math.inf:
            raise ValueError(
                f"contributing.epsilon must be {_LEAST_EPSILON} or more, got {self.epsilon}"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"contributing.delta must be above 0 and below 1, got {self.delta}")

    @property
    def noise_multiplier(self) -> float:
        """Deviation of the noise on counts over their L2 sensitivity.

        Noise of multiplier z is 1 / (2 z^2)-zCDP, and rho-zCDP is (epsilon, delta)-DP with
        ``epsilon = rho + 2 sqrt(rho ln(1 / delta))``: Bun & Steinke 2016, arXiv 1605.02065.
        """
        assert self.epsilon is not None, "counts without noise"
        log = math.log(1 / self.delta)
        root = math.sqrt(log + self.epsilon) - math.sqrt(log)  # sqrt(rho)
        return 1 / (math.sqrt(2) * root)

    def fitted(
        self,
        sentences: Sequence[Tensor],
        labels: Sequence[int],
        *,
        vocabulary: int,
        classes: int,
        noise: SecretNoise,
    ) -> "ContributingTokens":
        """Returns the factors of all tokens.

        Args:
            sentences: ``(T,)`` token ids each, without tokens that every sentence has.
            vocabulary: public, as are `classes` and the number of sentences.
            noise: of the counts; read with `epsilon` alone.

        Raises:
            ValueError: there is no label for each sentence, a label or token is none of these, or
                delta allows to give a sentence away.
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
        read, unseen = counts.double(), 3.0
        if self.epsilon is not None:
            check_delta(self.delta, len(sentences), "sentences")
            deviation = math.sqrt(self.clip) * self.noise_multiplier
            read = _released(counts, math.ceil(_GRID * deviation), noise)
            # Of n counts that are noise, `_LIFTED` are above this: e^floor times it, over the
            # floor, where classes are of one size.
            level = deviation * NormalDist().inv_cdf(1 - min(0.5, _LIFTED / counts.numel()))
            unseen += level / math.exp(self.floor)
        # Rounded, so that a last bit, as of another machine, draws no noise anew.
        found = utility(read + self.smoothing, unseen).round(decimals=6)
        return ContributingTokens(found.clamp(min=self.floor), self)


@dataclass(frozen=True)
class ContributingTokens:
    """Factors on eta, by token: more than 1 where a token tells of a class.

    The length of the noise tells of a token's factor: tokens of different factors have no bound
    that metric privacy would give, only those of one factor. An attacker that knows the factors
    weighs a candidate t by ``d ln eta(t) - eta(t) |z - x(t)|``, which nearest neighbours ignore.

    Args:
        factors: ``(classes, vocabulary)`` float64.
        settings: that they follow from.
    """

    factors: Tensor
    settings: ContributingSettings

    def of(self, tokens: Tensor, label: int | None = None) -> Tensor:
        """Returns ``(T,)`` float64 of ``(T,)`` token ids."""
        if self.settings.by_class and label is not None:
            return self.factors[label, tokens]
        return self.factors[:, tokens].amax(dim=0)  # max over c of eta(c, t) / eta_base

    @property
    def follow_labels(self) -> bool:
        """Whether they tell of labels beyond what counts with noise tell."""
        return self.settings.epsilon is None or self.settings.by_class


def utility(counts: Tensor, unseen: float = 3.0) -> Tensor:
    """Returns UI, ``(classes, vocabulary)``, of counts of the same shape; float64.

    `unseen` is taken to lie in the counts of other classes beside what was counted.
    """
    totals = counts.sum(dim=1).clamp(min=1)  # N_c
    shares = counts.clamp(min=0) / totals[:, None]  # p(t|c)
    others = (shares + unseen / totals.max()).log()  # ln(p(t|k) + 3 xi)
    classes = len(counts)
    # sum_{k != c} (ln p(t|c) - ln(p(t|k) + 3 xi))
    found = (classes - 1) * shares.log() - (others.sum(dim=0) - others)
    return torch.where(counts > 0, found, 0.0)


def _clipped(tokens: Tensor, clip: int) -> Tensor:
    """Returns at most `clip` different tokens: the highest ids, which vocabularies give to rarer.

    It reads one sentence alone, so that to leave a sentence out changes the counts by
    ``sqrt(clip)`` at most in Euclidean norm.
    """
    different = sorted(set(tokens.tolist()))
    return torch.tensor(different[-clip:], dtype=torch.int64)


def _released(counts: Tensor, scale: int, noise: SecretNoise) -> Tensor:
    """Returns float64 counts with noise, of `scale` in parts of `_GRID`."""
    # Noise of these very counts: that of others must not cancel it.
    digest = hashlib.sha256(counts.numpy().tobytes()).hexdigest()
    bits = noise.bits("token counts", scale, digest)
    drawn = torch.from_numpy(discrete_gaussian(bits, scale, counts.numel()))
    return (counts * _GRID + drawn.view_as(counts)).double() / _GRID
