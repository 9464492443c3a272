"""States of tokens made private before they are sent."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from experiments.experts.split.contributing_tokens import ContributingSettings, ContributingTokens
from experiments.experts.split.directions import Directions, DirectionSettings
from experiments.experts.split.metric_noise import (
    eta_of,
    mean_neighbour_distance,
    nearest,
    sample,
)
from experiments.searches.private_key import open_noise, seeded_noise
from merging.checkpoints.mechanisms import DiscreteGaussianMechanism
from merging.checkpoints.metric_privacy import Budgets, MetricNoise
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.ledger import Ledger
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
        noise: of the secret key; who knows it can subtract the noise.
        contributing: factors on eta; None: 1 for all.
        table: ``(V, d)``; noised vectors are replaced by its nearest rows, which costs nothing.
            None: noise alone.
        public_seed: the key follows from a seed.
        directions: noise is put on the coordinates of a state in these, and nothing else of it is
            sent; `eta` is per distance of coordinates. None: on all of it.
    """

    eta: float
    unit: float
    measured_on: str
    space: str
    noise: SecretNoise
    contributing: ContributingTokens | None = None
    table: Tensor | None = None
    public_seed: bool = False
    directions: Directions | None = None

    def privatize(
        self, states: Tensor, tokens: Tensor, example: str, label: int | None = None
    ) -> Tensor:
        """Returns ``(T, d)`` noised states, of the dtype and on the device of `states`.

        Args:
            states: ``(T, d)``, without padding: of ``where=embedding`` rows of the word embedding
                table, in front of positions and layer norm.
            tokens: ``(T,)`` ids.
            example: its name, of no other example.
            label: of the example, for ``contributing.by_class``; None: not known.

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
        bits = self.noise.bits("states", self.space, example, _digest(tokens.long(), etas))
        vectors = self.seen(states.detach().cpu().double())
        noised = vectors + sample((len(vectors), vectors.shape[1]), etas, bits)
        if self.directions is not None:
            noised = self.directions.states(noised)
        if self.table is not None:
            noised = self.table[nearest(noised, self.table)]
        return noised.to(states)

    def seen(self, states: Tensor) -> Tensor:
        """Returns ``(..., count)``: all that what is sent of ``(..., d)`` states depends on.

        Of sent states it is what the noise was put on, noise and all.
        """
        return states if self.directions is None else self.directions.coordinates(states)

    def etas(self, tokens: Tensor, label: int | None = None) -> Tensor:
        """Returns ``(T,)`` float64: eta of each of ``(T,)`` tokens."""
        if self.contributing is None:
            return torch.full(tokens.shape, self.eta, dtype=torch.float64)
        return self.eta * self.contributing.of(tokens.cpu(), label)

    def charged(
        self, ledger: Ledger, data: str, *, unit: str = "record", disjoint_from: Sequence[str] = ()
    ) -> Ledger:
        """Returns the ledger with what the noised states of a data set cost, each example once.

        Args:
            ledger: of the model that is trained on them.
            data: name of the data set.
            unit: what is one labelled sentence.
            disjoint_from: data sets that share no unit with it.
        """
        if self.public_seed:
            what = f"the states of {data}, whose noise follows from its public seed"
            return ledger.read(None, what, None)
        common: dict[str, Any] = {"unit": unit, "disjoint_from": tuple(disjoint_from)}
        draws = self.noise.name("states", _digest(self.eta * self._factors))
        states = PrivacySpend(
            data,
            math.inf,
            0.0,
            "metric privacy",
            "per token",
            what="noised states of tokens, with labels as they are",
            release=f"states {self.noise.identity} {draws}",
            metric=self.metric,
            **common,
        )
        if self.contributing is None:
            return ledger.add(states)
        settings = self.contributing.settings
        if settings.epsilon is None:
            return ledger.add(states)
        counts = PrivacySpend(
            data,
            settings.epsilon,
            settings.delta,
            "zCDP",
            "of discrete Gaussian noise",
            mechanisms=(DiscreteGaussianMechanism(settings.noise_multiplier),),
            what="counts of tokens by class",
            release=f"token counts {_digest(self.contributing.factors)[:16]}",
            **common,
        )
        return ledger.add(states, counts)

    @property
    def metric(self) -> MetricNoise:
        """What a privacy record says of the noise."""
        budgets: Budgets = "uniform"
        if self.contributing is not None:
            budgets = "labels" if self.contributing.follow_labels else "noised_counts"
        return MetricNoise(
            self.space,
            self.eta * float(self._factors.max()),
            self.eta * float(self._factors.min()),
            self.unit,
            self.measured_on,
            budgets,
            learned=self.directions is not None,
        )

    @property
    def _factors(self) -> Tensor:
        return torch.ones(1) if self.contributing is None else self.contributing.factors


@dataclass(frozen=True)
class PrivatizationSettings:
    """How much noise, where.

    Args:
        ratio: mean length of the noise, d / eta, over the mean distance of neighbours. Only the
            noise along the way to a neighbour misleads, about 1 / sqrt(d) of its length: nearest
            neighbours find half of 2,000 random tokens at 2 where d = 64 and at 4.5 where d = 384,
            and half of MiniLM's word pieces at 6. Eta itself means nothing across widths and
            layers.
        where: ``embedding``: the word embeddings, in front of positions and layer norm, whatever
            the depth of the split; ``states``: what leaves the bottom.
        project: replace noised word embeddings by the nearest ones of the table.
        contributing: less noise for tokens that tell of a class; None: one eta for all.
        directions: of ``where=states``: send the state's coordinates in a few directions that tell
            of the class, noised, and the public mean of all others; None: all of it.
        randomness: ``secret``: the key is drawn from the operating system; ``seed``: it follows
            from `seed`, for experiments: who knows it can subtract the noise.

    Raises:
        ValueError: an option has no meaning; names it.
    """

    ratio: float
    where: Where = "states"
    project: bool = False
    contributing: ContributingSettings | None = None
    directions: DirectionSettings | None = None
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
        if self.directions is not None and self.where != "states":
            raise ValueError(
                "privatization.directions are those of states: set privatization.where=states"
            )

    def noise(self, folder: Path, belongs: Sequence[str], *, begun: bool) -> SecretNoise:
        """Returns the noise; a secret key is drawn at the first start and lies in `folder`.

        It lies there as long as an example may be asked for again, and is given to nobody.

        Args:
            belongs: what the noise is for (data set, model): else has another key.
            begun: whether something was sent already.

        Raises:
            UserError: the key is gone, or its file is damaged.
        """
        if self.randomness == "seed":
            return seeded_noise(self.seed, belongs)
        return open_noise(folder, belongs, begun=begun)

    def fitted(
        self,
        vectors: Tensor,
        tokens: Tensor | None = None,
        *,
        measured_on: str,
        space: str,
        noise: SecretNoise,
        contributing: ContributingTokens | None = None,
        directions: Directions | None = None,
    ) -> Privatization:
        """Returns what noises examples; measures the distance of neighbours.

        Args:
            vectors: ``(n, d)``: the word embedding table; of ``where=states`` states of a text
                that is public.
            tokens: ``(n,)`` whose states they are; None: row i is token i.
            measured_on: what `vectors` are, in words.
            space: what will be noised, in words.
            contributing: as `self.contributing` fitted it; `directions`: as `self.directions` did.
        """
        seeded = self.randomness == "seed"
        if directions is not None:
            # Records publish the name: a digest would confirm guesses of the labelled sentences.
            name = directions.digest if seeded else noise.name("directions", directions.digest)
            vectors = directions.coordinates(vectors)
            space = f"{space} in {directions.words(name)}"
        unit = mean_neighbour_distance(vectors, tokens)
        if directions is not None and not seeded:
            unit = float(f"{unit:.2g}")  # for the same reason, and eta follows from it
        # Rounded, so that a last bit of the states, as of other threads, draws no noise anew.
        eta = float(f"{eta_of(self.ratio, vectors.shape[1], unit):.4g}")
        table = vectors if self.project else None
        kept = contributing, table, seeded, directions
        return Privatization(eta, unit, measured_on, space, noise, *kept)


def _digest(*tensors: Tensor) -> str:
    parts = (tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(b"|".join(parts)).hexdigest()
