"""States of tokens made private before they are sent."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from experiments.experts.split.contributing_tokens import ContributingSettings, ContributingTokens
from experiments.experts.split.metric_noise import (
    eta_of,
    mean_neighbour_distance,
    nearest,
    sample,
)
from search.privacy.private_noise import SecretNoise

Where: TypeAlias = Literal["embedding", "states"]


@dataclass(frozen=True)
class Privatization:
    """Noise on every token's vector, of density ``~ exp(-eta |z|)``, drawn once for an example.

    Nothing is kept: the noise follows from a secret key, from the example's name and tokens, and
    from what else shapes it, so that who asks again is given the same bits for the same bits.
    Another example, other tokens or another eta have noise of their own, as two answers with one
    noise could be subtracted; an example that is noised under two names or two etas pays twice.
    How many tokens there are is not hidden.

    Args:
        eta: of a token whose factor is 1, per Euclidean distance 1.
        unit: mean distance of neighbours among the vectors in `measured_on`.
        measured_on: the vectors that `unit` was measured on, in words.
        space: identity of the noised vectors (which layer of which model), in words; etas of
            different spaces do not add up.
        noise: the secret key; who knows it can subtract the noise.
        contributing: factors on eta; None: 1 for all.
        table: ``(V, d)``; noised vectors are replaced by its nearest rows, which costs nothing.
            None: noise alone.
    """

    eta: float
    unit: float
    measured_on: str
    space: str
    noise: SecretNoise
    contributing: ContributingTokens | None = None
    table: Tensor | None = None

    def privatize(
        self, states: Tensor, tokens: Tensor, example: str, label: int | None = None
    ) -> Tensor:
        """Returns ``(T, d)`` noised states, of the dtype and on the device of `states`.

        Args:
            states: ``(T, d)``, without padding: of ``where=embedding`` rows of the word embedding
                table, in front of positions and layer norm.
            tokens: ``(T,)`` ids.
            example: its name, of no other example.
            label: for factors of its class; None: the largest of any class, so that noise tells
                nothing of the label beyond the token.

        Raises:
            ValueError: the shapes do not fit, or a state is not finite.
        """
        if states.ndim != 2 or tokens.shape != states.shape[:1]:
            raise ValueError(
                f"example {example!r}: states {tuple(states.shape)} and tokens "
                f"{tuple(tokens.shape)} must have shapes (T, d) and (T,)"
            )
        if not bool(states.isfinite().all()):
            raise ValueError(f"example {example!r}: a state is not finite, nothing is sent")
        etas = self.etas(tokens, label)
        bits = self.noise.bits("states", self.space, example, _digest(tokens, etas))
        noise = sample((len(states), states.shape[1]), etas, bits)
        noised = states.detach().cpu().double() + noise
        if self.table is not None:
            noised = self.table[nearest(noised, self.table)]
        return noised.to(states)

    def etas(self, tokens: Tensor, label: int | None = None) -> Tensor:
        """Returns ``(T,)`` float64: eta of each of ``(T,)`` tokens."""
        if self.contributing is None:
            return torch.full(tokens.shape, self.eta, dtype=torch.float64)
        return self.eta * self.contributing.of(tokens.cpu(), label)


@dataclass(frozen=True)
class PrivatizationSettings:
    """How much noise, where.

    Args:
        ratio: mean length of the noise, d / eta, over the mean distance of neighbours: below 1
            nearly all tokens are found again by their nearest neighbour, at 2 about half. Eta
            itself means nothing across widths and layers.
        where: ``embedding``: the word embeddings, in front of positions and layer norm, whatever
            the depth of the split; ``states``: what leaves the bottom.
        project: replace noised word embeddings by the nearest ones of the table.
        contributing: less noise for tokens that tell of a class; None: one eta for all.
        randomness: ``secret``: the key is drawn from the operating system; ``seed``: it follows
            from `seed`, for experiments: who knows it can subtract the noise.

    Raises:
        ValueError: an option has no meaning; names it.
    """

    ratio: float
    where: Where = "states"
    project: bool = False
    contributing: ContributingSettings | None = None
    randomness: Literal["secret", "seed"] = "secret"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < math.inf:
            raise ValueError(f"privatization.ratio must be above 0 and finite, got {self.ratio}")
        for option, kind in (("where", get_args(Where)), ("randomness", ("secret", "seed"))):
            if (value := getattr(self, option)) not in kind:
                expected = " or ".join(kind)
                raise ValueError(f"privatization.{option}={value!r}: expected {expected}")
        if self.project and self.where != "embedding":
            raise ValueError(
                "privatization.project=true: states have no table of nearest tokens; set "
                "privatization.where=embedding"
            )

    def fitted(
        self,
        vectors: Tensor,
        tokens: Tensor | None = None,
        *,
        measured_on: str,
        space: str,
        noise: SecretNoise,
        contributing: ContributingTokens | None = None,
    ) -> Privatization:
        """Returns what noises examples; measures the distance of neighbours.

        Args:
            vectors: ``(n, d)``: the word embedding table; of ``where=states`` states of a text
                that is public.
            tokens: ``(n,)`` whose states they are; None: row i is token i.
            measured_on: what `vectors` are, in words.
            space: what will be noised, in words.
            contributing: as `self.contributing` fitted it.
        """
        unit = mean_neighbour_distance(vectors, tokens)
        eta = eta_of(self.ratio, vectors.shape[1], unit)
        table = vectors if self.project else None
        return Privatization(eta, unit, measured_on, space, noise, contributing, table)


def _digest(*tensors: Tensor) -> str:
    parts = (tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(b"|".join(parts)).hexdigest()
