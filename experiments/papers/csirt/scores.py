"""The finished cells of a run, and what follows from them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.papers.csirt.cells import BASE, CsirtCell
from experiments.papers.csirt.corpus import Form
from merging.arrays import Vector

EXPOSURE, F1 = "values/exposure", "bands/macro_f1"
Key = tuple[str, int, Form, str]


@dataclass(frozen=True)
class Paired:
    """First minus second exposure over the same canaries and seeds.

    Args:
        difference: mean, in bits.
        p: of Wilcoxon's signed-rank test, two-sided; q: after Benjamini and Hochberg's correction
            of all that are shown together.
        delta: Cliff's, in [-1, 1].
    """

    difference: float
    p: float
    q: float
    delta: float
    pairs: int


class CellScores:
    """Scores by base, seed, form and regime."""

    def __init__(self, cells: Sequence[CsirtCell], folder: Path) -> None:
        self.cells = tuple(cells)
        self.seeds = tuple(dict.fromkeys(cell.seed for cell in cells))
        self.bases = tuple(dict.fromkeys(cell.base for cell in cells))
        self._scores: dict[Key, Mapping[str, Any]] = {}
        for cell in cells:
            content = json.loads((folder / f"{cell.name}.json").read_text(encoding="utf-8"))
            self._scores[cell.base, cell.seed, cell.form, cell.regime] = content

    def regimes(self, form: Form) -> list[str]:
        """Returns the regimes of a form, the base first."""
        return list(dict.fromkeys(cell.regime for cell in self.cells if cell.form == form))

    def has(self, form: Form, regime: str) -> bool:
        """Whether there are cells of a regime."""
        return regime in self.regimes(form)

    def training(self, base: str, seed: int, form: Form, regime: str) -> Mapping[str, Any]:
        """Returns what a cell's training has left."""
        training: Mapping[str, Any] = self._scores[base, seed, form, regime]["training"]
        return training

    def values(self, base: str, form: Form, regime: str, metric: str) -> Vector:
        """Returns ``(seeds,)`` a metric's values."""
        cells = [self._scores[base, seed, form, regime] for seed in self.seeds]
        return np.array([cell["scores"][metric]["value"] for cell in cells])

    def cases(self, base: str, form: Form, regime: str, metric: str) -> Vector:
        """Returns ``(seeds * items,)`` a metric's cases, seed after seed."""
        cells = [self._scores[base, seed, form, regime] for seed in self.seeds]
        return np.concatenate([cell["scores"][metric]["cases"] for cell in cells])

    def mean(self, base: str, form: Form, regime: str, metric: str) -> float:
        """Returns a metric's mean over seeds."""
        return float(self.values(base, form, regime, metric).mean())

    def difference(self, base: str, first: str, second: str) -> float:
        """Returns the mean over seeds of first minus second exposure, raw records."""
        values = (self.values(base, "raw", regime, EXPOSURE) for regime in (first, second))
        return float(np.subtract(*values).mean())

    def beyond_base(self, form: Form, regime: str, metric: str) -> float:
        """Returns how far a regime lies above the model that it was trained from."""
        return self.over_bases(form, regime, metric) - self.over_bases(form, BASE, metric)

    def over_bases(self, form: Form, regime: str, metric: str) -> float:
        """Returns a metric's mean over bases of its means over seeds."""
        return float(np.mean([self.mean(base, form, regime, metric) for base in self.bases]))

    def chance(self, metric: str) -> float | None:
        """Returns what chance gives, where the evaluator says so."""
        for cell in self._scores.values():
            if metric in cell["scores"]:
                chance: float | None = cell["scores"][metric]["chance"]
                return chance
        return None

    def recovered(self, base: str, against: str) -> tuple[float, Vector]:
        """Returns ``(E[V0] - E[V0fs]) / (E[V0] - E[against])`` of the means, and ``(seeds,)``.

        Source: arXiv 2606.28479, decomposition; the paper's denominator has `against` V1.
        """
        raw, control, other = (
            self.values(base, "raw", regime, EXPOSURE) for regime in ("V0", "V0fs", against)
        )
        of_means = fraction(raw.mean() - control.mean(), raw.mean() - other.mean())
        of_seeds = [fraction(a - b, a - c) for a, b, c in zip(raw, control, other, strict=True)]
        return of_means, np.array(of_seeds)

    def paired(
        self, comparisons: Sequence[tuple[str, str]], bases: Sequence[str]
    ) -> dict[tuple[str, str, str], Paired]:
        """Returns (base, first, second) to the difference of raw exposures, all corrected."""
        raw = {
            (base, *pair): tuple(self.cases(base, "raw", regime, EXPOSURE) for regime in pair)
            for base in bases
            for pair in comparisons
        }
        ps = [wilcoxon(a, b) for a, b in raw.values()]
        qs = stats.false_discovery_control(ps) if ps else []
        return {
            key: Paired(float((a - b).mean()), p, float(q), cliffs_delta(a, b), len(a))
            for (key, (a, b)), p, q in zip(raw.items(), ps, qs, strict=True)
        }

    def seconds(self) -> float:
        """Returns what training and scoring took, all processes together."""
        return float(sum(cell["training_s"] + cell["scoring_s"] for cell in self._scores.values()))


def spread_text(values: Vector, digits: int = 2) -> str:
    """Returns mean and standard deviation; the mean alone of one value."""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def fraction(part: float, whole: float) -> float:
    """Returns `part` of `whole`; NaN where there is no whole."""
    return float(part / whole) if whole else math.nan


def wilcoxon(first: Vector, second: Vector) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs."""
    if np.array_equal(first, second):
        return 1.0
    return float(stats.wilcoxon(first, second, zero_method="pratt").pvalue)


def cliffs_delta(first: Vector, second: Vector) -> float:
    """Returns P(first > second) - P(first < second) over all pairs."""
    signs = np.sign(first[:, None] - second[None, :])
    return float(signs.mean())
