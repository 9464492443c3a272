"""Is a model still good enough? Said by its scores, or by noisy bits alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from evaluators.evaluator import Direction, Score
from evaluators.panel import Panel
from merging.arrays import Vector
from merging.checkpoints.mechanisms import SparseVector
from merging.checkpoints.privacy_record import PrivacySpend
from search.checks import check_positive, check_private_data
from search.privacy.private_fitness import ClippedSum, item_differences
from search.privacy.private_noise import SecretNoise
from search.privacy.private_svt import BelowThreshold

_ROUNDING = 1e-9  # of a mean over items against a tolerance that it meets exactly


@dataclass(frozen=True)
class PrivateValidation:
    """Validation items that are private: of every check one bit is released, by a sparse vector.

    In neighbouring data sets one item is replaced by one that contributes nothing. What is asked
    is the sum over items of how much better each is answered than by the model as it was: its
    scores on the same items decide what is good enough, so that they belong to the question and
    not to the threshold. Every target has a sparse vector, and threshold noise, of its own.

    Args:
        data: name of the private data set, for the ledger.
        epsilon: price of all checks of one target, however many say yes.
        clip: most that an item contributes; of an accuracy 1.
        unit: what an item stands for, for the ledger.
        disjoint_from: data sets of the ledger that share no unit with this one, such as those
            that the models were trained on: then the larger price holds, not the sum.
        randomness: ``secret``: noise from a key that the run draws and destroys when it is
            finished; ``seed``: from the run's seed, for tests: private to nobody who knows it.
    """

    data: str
    epsilon: float
    clip: float = 1.0
    unit: str = "record"
    disjoint_from: Sequence[str] = ()
    randomness: Literal["secret", "seed"] = "secret"

    def __post_init__(self) -> None:
        check_private_data(self.data, self.unit, self.disjoint_from)
        check_positive("privacy.", epsilon=self.epsilon, clip=self.clip)

    def spend(self, target: str, release: str) -> PrivacySpend:
        """Returns the price of one target's checks."""
        return PrivacySpend(
            dataset=self.data,
            epsilon=self.epsilon,
            delta=0.0,
            accountant="sparse vector technique (Lyu, Su, Li 2017)",
            accountant_version="algorithm 7",
            unit=self.unit,
            mechanisms=(SparseVector(self.epsilon),),
            disjoint_from=tuple(self.disjoint_from),
            what=f"deduplication: which groups of blocks of {target} may go; scores were not kept",
            release=f"{release} {target}",
        )


@dataclass(frozen=True, eq=False)
class Floor:
    """What a model must reach on every task.

    Args:
        scores: another model's, on the same items; main metric of every task.
        slack: by how much it may be worse, in the metric's units.
    """

    scores: Mapping[str, Score]
    slack: float = 0.0


class Checks(Protocol):
    """Answers for one target."""

    def holds(self, scores: Mapping[str, Score]) -> bool:
        """Whether a model with these scores is good enough."""
        ...

    def repeat(self, answer: bool) -> None:
        """Counts an answer that an earlier start of the run has written down."""
        ...


@dataclass(frozen=True, eq=False)
class ExactChecks:
    """Every main metric reaches every floor."""

    directions: Mapping[str, Direction]
    floors: Sequence[Floor]

    def holds(self, scores: Mapping[str, Score]) -> bool:
        """See `Checks`."""
        return all(
            _sign(self.directions[key]) * (scores[key].value - floor.scores[key].value)
            >= -floor.slack - _ROUNDING
            for floor in self.floors
            for key in floor.scores
        )

    def repeat(self, answer: bool) -> None:
        """See `Checks`."""


class NoisyChecks:
    """The same of private items: only bits come out.

    A question's value is the least, over floors and tasks, of ``sum_i clip(gain_i) + n slack``:
    one item changes it by at most the clip, as it changes each of these. An item whose score is
    not finite is answered as badly as can be, and touches no other.

    Args:
        failures: noes that the target may get.
        name: of the target; no other sparse vector of the same noise may have it.

    Raises:
        ValueError: a metric has no score per item.
    """

    def __init__(
        self,
        privacy: PrivateValidation,
        directions: Mapping[str, Direction],
        floors: Sequence[Floor],
        *,
        failures: int,
        noise: SecretNoise,
        name: str,
    ) -> None:
        self._directions, self._floors = directions, floors
        self._sum = ClippedSum(privacy.clip, 1.0, noise)
        for floor in floors:
            for key, score in floor.scores.items():
                _cases(key, score)
        self.svt = BelowThreshold(
            epsilon=privacy.epsilon,
            sensitivity=self._sum.part,
            threshold=0,
            noise=noise,
            name=f"deduplication {name}",
            belows=failures,
        )

    def holds(self, scores: Mapping[str, Score]) -> bool:
        """See `Checks`."""
        return self.svt.at_least(
            min(self._room(floor, key, scores) for floor in self._floors for key in floor.scores)
        )

    def repeat(self, answer: bool) -> None:
        """See `Checks`."""
        self.svt.repeat(answer)

    def _room(self, floor: Floor, key: str, scores: Mapping[str, Score]) -> int:
        """Returns ``sum_i clip(gain_i) + n slack`` in units of the grid."""
        sign = _sign(self._directions[key])
        before, after = (sign * _cases(key, each[key]) for each in (floor.scores, scores))
        gains = item_differences(_worst(after), _worst(before))
        return self._sum.sum(gains) + round(len(before) * floor.slack / self._sum.unit)


def main_scores(panel: Panel, scores: Mapping[str, Score]) -> dict[str, Score]:
    """Returns the main metric of every task."""
    return {key: scores[key] for key in panel.main.values()}


def _sign(direction: Direction) -> float:
    return 1.0 if direction == "maximize" else -1.0


def _worst(gains: Vector) -> Vector:
    """Returns minus infinity for what is not finite."""
    found: Vector = np.where(np.isfinite(gains), gains, -np.inf)
    return found


def _cases(key: str, score: Score) -> Vector:
    if score.cases is None or not score.own_cases:
        raise ValueError(
            f"{key} has no score per item that is the item's alone, so that its part cannot "
            "be bounded: choose another evaluator, or privacy=none"
        )
    return score.cases
