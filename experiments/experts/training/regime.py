"""How an expert is trained: lots, updates, learning rate, and what protects the records."""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from experiments.experts.training.loop import cosine_rate
from merging.privacy.accounting import check_delta

Reduction: TypeAlias = Literal["mean", "sum"]
Sampling: TypeAlias = Literal["shuffled", "poisson"]
Clipping: TypeAlias = Literal["per_record", "as_released"]
Randomness: TypeAlias = Literal["secret", "seed"]


def _check_choice(option: str, value: str, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{option}={value!r}: expected {' or '.join(map(repr, get_args(kind)))}")


@dataclass(frozen=True)
class TrainingPrivacy:
    """DP-SGD on records: Abadi et al. 2016, Deep Learning with Differential Privacy, Algorithm 1.

    Args:
        delta: probability that the guarantee may fail, above 0 and below 1 / records.
        epsilon: guarantee to reach; the noise follows from it. None: `noise_multiplier` is given.
        noise_multiplier: standard deviation of the noise over `clip`; 0: no noise, hence no
            privacy (an ablation). None: as `epsilon` needs.
        clip: largest norm of one record's gradient, over all trained parameters together.
        clipping: ``per_record``; or ``as_released``: the fault of the code published with arXiv
            2606.28479, one clip coefficient from the mean token loss on a sum over the tokens, so
            that a record of T tokens weighs up to T x `clip` and `epsilon` does not hold.
        accountant: of opacus, ``rdp`` or ``prv``.
        randomness: ``secret``: lots, dropout and noise are drawn from the operating system and
            forgotten, so that no training repeats another; ``seed``: from the training's seed,
            for tests: whoever knows it can subtract the noise, so that the result is not private.
    """

    delta: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    clip: float = 1.0
    clipping: Clipping = "per_record"
    accountant: Literal["rdp", "prv"] = "rdp"
    randomness: Randomness = "secret"

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta={self.delta}: it must lie between 0 and 1")
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                "privacy: give either epsilon or noise_multiplier, got "
                f"epsilon={self.epsilon} and noise_multiplier={self.noise_multiplier}"
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(f"privacy.epsilon={self.epsilon}: it must be above 0 and finite")
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(
                f"privacy.noise_multiplier={self.noise_multiplier}: it must be 0 or more"
            )
        if not 0 < self.clip < math.inf:
            raise ValueError(f"privacy.clip={self.clip}: it must be above 0 and finite")
        _check_choice("privacy.clipping", self.clipping, Clipping)
        _check_choice("privacy.randomness", self.randomness, Randomness)


@dataclass(frozen=True)
class Regime:
    """One way to train: AdamW over lots of records, its learning rate a warm-up and a cosine.

    Args:
        lot: records of one update; under Poisson sampling their expected number.
        epochs: how often a record is presented on average; ``epochs * records / lot`` updates.
            A matched-update control has a small lot and a fraction of an epoch.
        learning_rate: the highest.
        final: share of `learning_rate` at the last update.
        warmup: share of the updates until the highest rate.
        weight_decay: of AdamW, on matrices only.
        sampling: ``shuffled``: every record once before any comes again; ``poisson``: every
            record with probability ``lot / records`` in each update, independently.
        loss: of a record over its tokens.
        clip: largest norm of the lot's gradient; not read with `privacy`. None: no limit.
        privacy: DP-SGD; None: none.
        physical: most records of one backward pass; None: the whole lot. Memory only.
    """

    lot: int
    epochs: float = 3.0
    learning_rate: float = 1e-4
    final: float = 0.0
    warmup: float = 0.0
    weight_decay: float = 0.0
    sampling: Sampling = "shuffled"
    loss: Reduction = "mean"
    clip: float | None = 1.0
    privacy: TrainingPrivacy | None = None
    physical: int | None = None

    def __post_init__(self) -> None:
        for option, count in {"lot": self.lot, "physical": self.physical}.items():
            if count is not None and count < 1:
                raise ValueError(f"regime.{option}={count}: it must be at least 1")
        for option in ("epochs", "learning_rate"):
            if not 0 < getattr(self, option) < math.inf:
                raise ValueError(f"regime.{option}={getattr(self, option)}: it must be above 0")
        _check_choice("regime.sampling", self.sampling, Sampling)
        _check_choice("regime.loss", self.loss, Reduction)
        if self.privacy is not None and self.sampling != "poisson":
            raise ValueError(
                "regime.sampling=shuffled with privacy: the accountant holds for Poisson "
                "sampling alone; set regime.sampling=poisson"
            )
        as_released = self.privacy is not None and self.privacy.clipping == "as_released"
        if as_released and self.loss != "mean":
            raise ValueError("regime.loss=sum: clipping=as_released is about the mean loss")

    def updates(self, records: int) -> int:
        """Returns the number of updates, at least 1.

        Raises ValueError: fewer records than a lot, or delta allows to give one of them away.
        """
        if self.lot > records:
            raise ValueError(f"regime.lot={self.lot}: there are only {records} records")
        if self.privacy is not None:
            check_delta(self.privacy.delta, records)
        return max(1, round(self.epochs * records / self.lot))

    def rate_at(self, update: int, updates: int) -> float:
        """Returns the learning rate of an update; updates count from 0."""
        rising = round(self.warmup * updates)
        return cosine_rate(
            update, updates, peak=self.learning_rate, final=self.final, rising=rising
        )
