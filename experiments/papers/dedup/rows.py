"""The figures of all jobs as rows: a target in a way."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from experiments.papers.dedup.jobs import DedupJob

Found: TypeAlias = Mapping[DedupJob, Mapping[str, Any]]


@dataclass(frozen=True)
class DedupRow:
    """Figures of one target deduplicated in one way."""

    pool: str
    cluster: str
    target: str
    way: str
    figures: Mapping[str, Any]

    @property
    def times(self) -> float:
        """How many times smaller its own new bytes are than the target's."""
        return 1 / float(self.figures["ratio"])

    @property
    def drop(self) -> float:
        """Of accuracy on the validation items."""
        return float(self.figures["before"] - self.figures["after"])


def rows_of(found: Found) -> Iterator[DedupRow]:
    """Yields every target in every way."""
    for job, figures in found.items():
        if job.target is not None and job.kind != "baselines":
            yield DedupRow(job.pool, job.cluster, job.target, job.kind, figures)
        elif job.cluster and job.target is None and job.kind != "zoo":
            for target, each in figures["targets"].items():
                yield DedupRow(job.pool, job.cluster, target, job.kind, each)


def baselines_of(found: Found) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """Returns pool, cluster and target -> figures of the baselines."""
    return {
        (job.pool, job.cluster, job.target): figures
        for job, figures in found.items()
        if job.kind == "baselines" and job.target is not None
    }


def price_text(price: Mapping[str, float]) -> str:
    """Returns an epsilon, and the plain sum beside it where that is another."""
    summed = f" ({rounded_up(price['added'])})" if price["added"] > price["epsilon"] + 5e-3 else ""
    return f"{rounded_up(price['epsilon'])}{summed}"


def rounded_up(epsilon: float) -> str:
    """Returns an epsilon that promises no more; 1e-6 is what sums are off."""
    return f"{math.ceil(100 * epsilon - 1e-6) / 100:.2f}"
