"""What a comparison of runs finds: plain values, from which text, pages and plots are made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.compare.significance import Difference
from experiments.runs.model_scores import TaskColumn


@dataclass(frozen=True)
class RunValues:
    """One number of each run of a group; None where a run has none."""

    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Mean of the known values; None: there are none."""
        return math.fsum(self.known) / len(self.known) if self.known else None

    @property
    def sd(self) -> float | None:
        """Standard deviation with n - 1; None below two values."""
        if len(self.known) < 2:
            return None
        return float(np.std(self.known, ddof=1)) if len(set(self.known)) > 1 else 0.0


@dataclass(frozen=True)
class Reach:
    """What it took to reach the target.

    Args:
        evaluations: median over seeds; None: half of them or more did not reach it.
        seconds: the same of the time spent in evaluations; None also where it is not recorded.
    """

    evaluations: float | None
    seconds: float | None
    reached: int
    runs: int


@dataclass(frozen=True)
class ComparisonRow:
    """A group of runs, or a model that they are measured against; fitness by split.

    Args:
        label: see `experiments.compare.labels`; of a reference its kind and name.
        kind: ``evolved``, or the reference's.
        options: in which the groups differ.
        seeds: of the runs, in the order of all values.
        scores: main ``task/metric`` to the held-out score.
        optimism: gain on the base, on search items less on held-out items.
        reach: of the target; None for references and where there is no target.
        curve: ``(evaluations,)`` mean over seeds of the best fitness so far, and its sd.
    """

    label: str
    kind: str
    options: Mapping[str, str]
    seeds: tuple[int, ...]
    runs: tuple[Path, ...]
    search: RunValues
    selection: RunValues
    report: RunValues
    scores: Mapping[str, RunValues]
    optimism: RunValues
    item_evaluations: RunValues
    reach: Reach | None = None
    curve: tuple[Sequence[float], Sequence[float]] = ((), ())


@dataclass(frozen=True)
class ComparedPair:
    """One tested pair.

    Args:
        second: label of the group or reference that it is compared with.
        corrected: p after Holm's correction for all tests of the comparison; None: not tested.
    """

    first: str
    second: str
    difference: Difference
    corrected: float | None


@dataclass(frozen=True)
class Comparison:
    """All that `compare` finds.

    Args:
        groups: from the best mean held-out fitness (search, where nothing is held out) down.
        references: base, best expert and best static merge.
        tests: of pairs of groups, or of every group against `against`.
        against: label of what all are compared with; None: all pairs.
        target: search fitness whose reaching is timed; None: none.
        target_name: where the target comes from.
        held_out: there are held-out scores; tests need them.
        notes: what a reader has to know: unequal budgets, runs left out, tests of items alone.
    """

    groups: tuple[ComparisonRow, ...]
    references: tuple[ComparisonRow, ...]
    tasks: tuple[TaskColumn, ...]
    tests: tuple[ComparedPair, ...]
    against: str | None
    target: float | None
    target_name: str
    held_out: bool
    notes: tuple[str, ...]
    unfinished: tuple[Path, ...]
