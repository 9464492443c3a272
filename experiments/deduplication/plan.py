"""One target deduplicated: the schedule's questions, answered by whoever measures the model."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from merging.arrays import Vector
from merging.deduplication.saliency import least_first
from merging.deduplication.substitution import Candidates, Substitution
from search.deduplication.schedules import Asked, DedupSchedule, run

Accepts: TypeAlias = Callable[[Substitution, Substitution], bool]
"""Whether the model may become what the second one says, from what the first one says."""


@dataclass
class _State:
    now: Substitution
    accepts: Accepts

    def check(self, group: Collection[int]) -> bool:
        proposed = self.now.substitute(group)
        if accepted := self.accepts(self.now, proposed):
            self.now = proposed
        return accepted


def deduplicate(
    candidates: Candidates,
    saliency: Vector,
    schedule: DedupSchedule,
    accepts: Accepts,
    *,
    keep: Collection[int] = (),
) -> tuple[Substitution, Asked]:
    """Returns the target with the blocks given up that may go, and what was asked.

    Args:
        saliency: ``(blocks,)``; blocks of none at all are asked for at the end, together.
        keep: blocks that must stay, because they stand in other models.
    """
    order, zeros = least_first(saliency)
    state = _State(Substitution.none(candidates), accepts)
    kept = set(keep)
    asked = run(
        schedule,
        [block for block in order if block not in kept],
        state.check,
        zeros=[block for block in zeros if block not in kept],
        lent=lambda: state.now.lent,
    )
    return state.now, asked
