"""A few telling items, chosen by item response theory from what was answered before."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merging.arrays import Vector
from search.checks import check_at_least, check_not_negative
from search.loop.history import Record
from search.racing.calibration import FullAnswers
from search.racing.item_model import ItemModel
from search.racing.racing import Full, Places, Race, best_full
from search.winners.shrinkage import Strata

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemResponse:
    """Candidates answer a few telling items; only the most promising answer all.

    The first generations answer all items. From then on, the same few are asked of everyone:
    those that tell most of the fitness by a model of item responses, which is fitted anew to all
    complete answers before every generation. What is estimated has a stated standard error, see
    `FullAnswers.calibrated`. One candidate of a generation, the most promising, answers all
    whatever its estimate: a search that gets better moves away from what the model was fitted to,
    and that has to be seen.

    Args:
        share: of all items that everyone is asked.
        warm_up: generations that are asked all items; more, while there are too few candidates
            to fit the model to.
        keep: at most this share of a generation, rounded up, is asked all items.
        doubt: who would stay below the best so far even with so many standard errors more is not
            asked all items, but for the most promising.
        factors: most numbers of a candidate's ability.
    """

    share: float = 0.1
    warm_up: int = 2
    keep: float = 0.25
    doubt: float = 2.0
    factors: int = 4
    least_candidates = 1

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("keep", self.keep)):
            if not 0 < value < 1:
                raise ValueError(f"racing.{name} must lie between 0 and 1, got {value}")
        check_at_least(1, "racing.", warm_up=self.warm_up, factors=self.factors)
        check_not_negative("racing.", doubt=self.doubt)

    def race(
        self,
        count: int,
        generation: int,
        records: Sequence[Record],
        strata: Strata,
        seed: int,
        sizes: Vector | None = None,
    ) -> Race:
        """Returns the race of a generation; see `Racing`."""
        items = sum(count for count, _ in strata)
        everything = np.arange(items)
        complete = [number for number, record in enumerate(records) if _is_complete(record)]
        warmed, best = self._warmed(records), best_full(records)
        if generation < self.warm_up or warmed < self.factors + 4 or best is None:
            return _Estimated([everything])
        cases = np.stack([c for number in complete if (c := records[number].cases) is not None])
        # generations are alike in size
        numbers = np.array(complete, np.int64) * generation // len(records)
        count_asked = math.ceil(self.share * items)
        answers = FullAnswers(cases, numbers, warmed, strata, self.factors, count_asked)
        model, places, error = answers.calibrated()
        asked = f"{len(places)} of {items} items"
        logger.info("racing: %s, standard error of the fitness %.3g", asked, error)
        most = math.ceil(self.keep * count)
        least = best.fitness - self.doubt * error
        return _Estimated([places, everything], model, error, least, most)

    def _warmed(self, records: Sequence[Record]) -> int:
        """Returns how many complete answers came before the first estimate: the warm-up's."""
        count = 0
        for record in records:
            if record.asked is not None:
                break
            count += _is_complete(record)
        return count


@dataclass(frozen=True, eq=False)
class _Estimated:
    """The race to the most promising; see `Race`.

    Args:
        stages: the telling items and all, or all alone.
        model: of the items; None: all are asked.
        error: stated standard error of an estimate.
        least: estimate that suffices to be asked all.
        most: how many are asked all.
    """

    stages: Sequence[Places]
    model: ItemModel | None = None
    error: float = 0.0
    least: float = 0.0
    most: int = 0

    def staying(self, stage: int, cases: Mapping[int, Vector]) -> list[int]:
        """Returns the highest estimate, and the few more that may be better than the best."""
        assert self.model is not None
        places = self.stages[stage]
        estimates = {i: self.model.complete(places, row).fitness for i, row in cases.items()}
        ranked = sorted(estimates, key=lambda number: (-estimates[number], number))
        return sorted(
            ranked[:1] + [i for i in ranked[1 : self.most] if estimates[i] >= self.least]
        )

    def estimate(self, stage: int, cases: Vector, reference: Full) -> Full:
        """Returns what the model expects; see `Race`."""
        assert self.model is not None
        return self.model.complete(self.stages[stage], cases)


def _is_complete(record: Record) -> bool:
    evaluated = record.same_as is None and record.asked is None
    return evaluated and record.fitness is not None and record.cases is not None
