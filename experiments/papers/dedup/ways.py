"""Ways to deduplicate a target, and what all of them have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.papers.dedup.pools import DedupPool
from search.deduplication.schedules import DedupSchedule, Drd, Dred, GreedyN

START = "start"
"""Name of a cluster's base that is the pool's public start: it has no privacy record."""

_SCHEDULES = ("dred", "dred1", "drd", "greedy")
_CHECKS = ("fair", "svt", "published")


@dataclass(frozen=True)
class Way:
    """One way to deduplicate.

    Args:
        schedule: ``dred``, ``drd`` or ``greedy``; ``dred1``: DRED down to single blocks, so that
            none stays that was not asked about.
        checks: ``exact`` accuracies; ``fair``, each also at least that of the target before it;
            ``svt``, noisy bits at the price of the training's epsilon;
            ``published``, as the paper's code has them.
    """

    schedule: str
    checks: str = "exact"

    @property
    def name(self) -> str:
        """For files and the page."""
        return self.schedule if self.checks == "exact" else f"{self.schedule}-{self.checks}"

    @classmethod
    def of(cls, name: str) -> "Way":
        """Returns the way of a name."""
        schedule, _, checks = name.partition("-")
        if schedule not in _SCHEDULES or checks not in ("", *_CHECKS):
            raise ValueError(
                f"procedure.ways names {name!r}: expected {', '.join(_SCHEDULES)}, alone or with "
                f"{', '.join('-' + each for each in _CHECKS)}"
            )
        return cls(schedule, checks or "exact")


@dataclass(frozen=True)
class DedupSetting:
    """What all cells have in common.

    Args:
        failures: noes that a sparse vector may say.
        greedy: blocks of a group of greedy-N.
    """

    pools: Mapping[str, DedupPool]
    cache: Path
    out: Path
    failures: int = 3
    greedy: int = 20
    min_length: int = 10

    def schedule(self, way: Way) -> DedupSchedule:
        """Returns the schedule of a way."""
        failures = None if way.checks in ("exact", "fair") else self.failures
        if way.schedule == "greedy":
            return GreedyN(self.greedy, failures)
        if way.schedule == "drd":
            return Drd(self.min_length, failures)
        return Dred(1 if way.schedule == "dred1" else self.min_length, failures)


def directory_of(setting: DedupSetting, pool: str, name: str) -> Path:
    """Returns where an expert lies, or the public start by the name `START`."""
    spec = setting.pools[pool]
    if name == START:
        return spec.folder(setting.cache) / "start"
    return spec.expert(setting.cache, name)
