"""The best weighted mean within limits on other metrics: skill without what must not be there."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.evaluator import Direction, Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from search.normalisation import Normalize, Term
from search.objective import BoundObjective, WeightedMean

FLOOR = -1000.0
"""Least fitness of a candidate within all limits; one that breaks a limit lies below."""


@dataclass(frozen=True)
class Limit:
    """How far a metric may go.

    Args:
        key: ``task/metric``.
        bound: the furthest allowed value.
        sign: 1 where values above the bound break it, -1 where values below do.
    """

    key: str
    bound: float
    sign: float = 1.0

    def excess(self, value: float) -> float:
        """Returns by what share of the bound (of 1 where it is 0) `value` breaks it."""
        return max(0.0, self.sign * (value - self.bound)) / (abs(self.bound) or 1.0)


@dataclass(frozen=True)
class BoundConstrained:
    """A weighted mean with limits, as one number that ranks by feasibility first.

    Within all limits the fitness is the mean (at least `FLOOR`), beyond one
    ``FLOOR - sum of excesses``: every candidate within ranks above every one beyond, those within
    by their mean, those beyond by how far they are out, the mean not looked at.

    Source: Deb 2000, An efficient constraint handling method for genetic algorithms, section 3
        (excesses as shares of their bounds). There the floor is the worst mean in the population;
        here it is a constant, so that fitness can be compared between generations and runs.
    """

    skill: BoundObjective
    limits: tuple[Limit, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One: the mean within its limits."""
        return ("mean within limits",)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The skills."""
        return self.skill.terms

    @property
    def keys(self) -> tuple[str, ...]:
        """Every ``task/metric`` that a fitness is made of."""
        return (*self.skill.keys, *(limit.key for limit in self.limits))

    def violation(self, values: Mapping[str, float]) -> float:
        """Returns the sum of all excesses; 0 within all limits."""
        for limit in self.limits:
            if math.isnan(values.get(limit.key, math.nan)):
                raise EvaluationError(
                    f"{limit.key} is limited, and is {values.get(limit.key, 'missing')}"
                )
        return math.fsum(limit.excess(values[limit.key]) for limit in self.limits)

    def fitness(self, values: Mapping[str, float]) -> Vector:
        """Returns ``(1,)``; see `Objective`."""
        mean, violation = self.skill.fitness(values), self.violation(values)
        if violation > 0:
            return np.array([FLOOR - violation])
        return np.maximum(mean, FLOOR)

    def __call__(self, scores: Mapping[str, Score]) -> tuple[Vector, Vector | None]:
        """Returns fitness, and the cases of the skills alone; see `Objective`."""
        fitness = self.fitness({key: score.value for key, score in scores.items()})
        return fitness, self.skill(scores)[1]


@dataclass(frozen=True)
class Constrained:
    """One objective: the weighted mean of the tasks' scores within limits on other metrics.

    Args:
        limits: ``task`` (its main metric) or ``task/metric`` to ``{at_most: x}``,
            ``{at_least: x}`` or, for a metric that is to be minimised, ``{share: s, chance: c}``:
            at most ``c + s (worst - c)``, the worst expert's value the worst. The panel of every
            split must have these tasks.
        weights: as for `WeightedMean`, for the tasks without a limit; None: all equal. A task
            with a limit can have a weight too.
    """

    limits: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, float] | None = None
    normalize: Normalize | Mapping[str, Normalize] = "expert"
    metrics: Mapping[str, str] | None = None
    cap: float | Mapping[str, float] | None = None

    def bind(
        self,
        directions: Mapping[str, Direction],
        main: Mapping[str, str],
        base_scores: Mapping[str, float],
        expert_scores: Mapping[str, Mapping[str, float]],
    ) -> BoundConstrained:
        """Returns the objective for these tasks; arguments and errors as in `WeightedMean`."""
        if not self.limits:
            raise ValueError(
                "objective.limits is empty: name a limit, or choose another objective"
            )
        keys = {key: _key(key, directions, main) for key in self.limits}
        limited = {key.partition("/")[0] for key in self.limits}
        skills = [task for task in main if task not in limited]
        weights = dict.fromkeys(skills, 1.0) if self.weights is None else dict(self.weights)
        if not skills and self.weights is None:
            raise ValueError(
                "objective.limits limits every task, so that nothing is left to be maximised: "
                "name the skills in objective.weights"
            )
        weights.update({task: 0.0 for task in limited if task not in weights})
        limits = []
        for name, spec in self.limits.items():
            key = keys[name]
            values = [scores[key] for scores in expert_scores.values() if key in scores]
            limits.append(_limit(name, key, spec, directions[key], values))
        skill = WeightedMean(weights, self.normalize, self.metrics, self.cap).bind(
            directions, main, base_scores, expert_scores
        )
        return BoundConstrained(skill, tuple(limits))


def _key(name: str, directions: Mapping[str, Direction], main: Mapping[str, str]) -> str:
    key = main.get(name, name)
    if key not in directions:
        raise ValueError(
            f"objective.limits names {name!r}; known are the tasks {', '.join(main)} and their "
            f"metrics {', '.join(directions)}"
        )
    return key


def _limit(
    name: str, key: str, spec: Mapping[str, float], direction: Direction, values: Sequence[float]
) -> Limit:
    for option, value in spec.items():
        if not math.isfinite(value):
            raise ValueError(f"objective.limits.{name}.{option} must be finite, got {value}")
    match sorted(spec):
        case ["at_most"]:
            return Limit(key, spec["at_most"])
        case ["at_least"]:
            return Limit(key, spec["at_least"], -1.0)
        case ["chance", "share"]:
            return _relative(name, key, spec, direction, values)
    raise ValueError(
        f"objective.limits.{name} must be {{at_most: x}}, {{at_least: x}} or "
        f"{{share: s, chance: c}}, got {dict(spec)}"
    )


def _relative(
    name: str, key: str, spec: Mapping[str, float], direction: Direction, values: Sequence[float]
) -> Limit:
    if direction != "minimize":
        raise ValueError(
            f"objective.limits.{name}: a share is of a metric that is to be minimised, {key} is "
            "to be maximised: use at_most or at_least"
        )
    if spec["share"] < 0:
        raise ValueError(f"objective.limits.{name}.share must be 0 or more, got {spec['share']}")
    worst = max((value for value in values if math.isfinite(value)), default=None)
    if worst is None:
        raise ValueError(
            f"objective.limits.{name}: no expert has a finite {key} to take a share of: "
            "use at_most"
        )
    # c + s (worst - c)
    return Limit(key, spec["chance"] + spec["share"] * max(0.0, worst - spec["chance"]))
