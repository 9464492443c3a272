"""Exposure: by how many bits of guessing does the model give a planted value away?"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.intervals import mean_interval, share_interval
from evaluators.memorization.candidate_losses import (
    CanaryAttack,
    ScoreOn,
    candidate_items,
    candidate_losses,
)
from evaluators.memorization.skew_normal import fit_skew_normal
from evaluators.requests import Response
from merging.arrays import Vector


class Exposure(CanaryAttack):
    """Where does the planted value rank among values that were never trained on?

    exposure = log2 R - log2 rank, by loss among R candidates: the planted value and its reference
    set. Exact where the file's variants are all other values that might have been planted,
    sampled where they are some of them, or where `references` draws some. It ranges from 0 to
    log2 R. exposure_extrapolated = -log2 P(loss of a random value <= that of the planted one), by
    a skew-normal distribution fitted to the losses of the reference set: it has no upper end.
    ranked_first is the share of canaries with a smaller loss than every variant. The scores are
    means over canaries; the cases are the canaries'.

    blind_auc ranks planted values without any model: `blind_ranking`. Where its interval lies
    above 0.5 they differ from their variants by themselves, and what is found is no memorization.

    Args:
        score_on: ``record``: the loss of the whole record; ``value``: of the value's own tokens,
            which is less to compute. The other options choose canaries, see `chosen_canaries`.

    Source: Carlini et al. 2019, The Secret Sharer, arXiv 1802.08232, definitions 4 to 6. There the
        reference set does not contain the canary; here R counts it, so that a value that ranks
        last has 0 bits. Equal losses share their ranks.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(
        ("exposure", "exposure_extrapolated", "ranked_first", "blind_auc"), "minimize"
    )

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        score_on: ScoreOn = "record",
        group: str | None = None,
        take: str | None = None,
        references: int | None = None,
        seed: int = 0,
    ) -> None:
        self.items = candidate_items(
            model,
            data,
            task="exposure",
            score_on=score_on,
            split=split,
            group=group,
            take=take,
            references=references,
            seed=seed,
        )

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns exposures in bits, the share that is ranked first, and the blind area."""
        losses = candidate_losses(self.items, responses)
        exposures = np.array([exposure(row[0], row[1:]) for row in losses])
        beyond = np.array([extrapolated(row[0], row[1:]) for row in losses])
        first = np.array([float(row[0] < row[1:].min()) for row in losses])
        sizes = [len(row) for row in losses]
        floor = sum(chance_exposure(size) for size in sizes) / len(sizes)
        by_luck = sum(1 / size for size in sizes) / len(sizes)
        bits = mean_interval(exposures, 0.0, math.log2(max(sizes)))
        hits = share_interval(int(first.sum()), len(first))
        return {
            "exposure": Score(float(exposures.mean()), exposures, floor, bits),
            "exposure_extrapolated": Score(
                float(beyond.mean()), beyond, 1 / math.log(2), mean_interval(beyond, 0.0)
            ),
            "ranked_first": Score(float(first.mean()), first, by_luck, hits),
            **self.blind,
        }


def exposure(planted: float, references: Vector) -> float:
    """Returns ``log2 R - log2 rank`` in bits, ``R = references + 1``; ties count half a rank.

    Args:
        planted: loss of the planted value.
        references: ``(references,)`` losses of the others.

    Example:
        >>> exposure(1.0, np.array([2.0, 3.0, 4.0])), exposure(9.0, np.array([2.0, 3.0, 4.0]))
        (2.0, 0.0)
    """
    rank = 1 + float((references < planted).sum()) + 0.5 * float((references == planted).sum())
    return math.log2((len(references) + 1) / rank)  # log2 R - log2 rank


def extrapolated(planted: float, references: Vector) -> float:
    """Returns ``-log2 F(planted)``, F a skew-normal fitted to `references`; at least 0.

    Where all references are equal there is nothing to fit, and the rank's exposure is returned.

    Source: Carlini et al. 2019, arXiv 1802.08232, section 4.3; the fit has a penalty, see
        `evaluators.memorization.skew_normal`.
    """
    if float(np.ptp(references)) == 0:
        return exposure(planted, references)
    return -fit_skew_normal(references).log_cdf(planted) / math.log(2)  # -log2 F(planted)


def chance_exposure(candidates: int) -> float:
    """Returns the mean exposure where every rank is equally likely, in bits.

    ``log2 R - log2(R!) / R``: 1.40 for R = 101, log2 e = 1.44 for large R; not the 1 bit of the
    middle rank.
    """
    log_factorial = float(special.gammaln(candidates + 1))  # ln R!
    return math.log2(candidates) - log_factorial / (candidates * math.log(2))
