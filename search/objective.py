"""What is to be maximised: scores of several tasks in, one fitness or several out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np

from evaluators.evaluator import Direction, Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector

Normalize: TypeAlias = Literal["expert", "raw"]
"""How scores become gains; a mapping says it task by task, ``expert`` for those it leaves out."""


class Objective(Protocol):
    """An objective that knows its tasks; what the loop is given."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of a fitness measures."""
        ...

    def fitness(self, values: Mapping[str, float]) -> Vector:
        """Returns ``(objectives,)`` from the scores' values alone, so that it can be recomputed.

        Raises:
            EvaluationError: a score is missing or not finite.
        """
        ...

    def __call__(self, scores: Mapping[str, Score]) -> tuple[Vector, Vector | None]:
        """Returns fitness ``(objectives,)`` and, where all tasks give them, cases ``(cases,)``."""
        ...


@dataclass(frozen=True)
class Term:
    """One task's part: ``gain = (sign * score - base) / span``.

    Args:
        task: name of the task.
        key: ``task/metric`` of the score.
        sign: 1 where the metric is to be maximised, -1 where minimised.
        base: ``sign * score`` of the base; 0 where scores are taken as they are.
        span: how much the best expert is better than the base; 1 where scores are taken raw.
    """

    task: str
    key: str
    sign: float
    base: float = 0.0
    span: float = 1.0

    def gain(self, value: float) -> float:
        """Returns the task's normalised score: 0 like the base, 1 like the best expert."""
        return (self.sign * value - self.base) / self.span


@dataclass(frozen=True)
class BoundObjective:
    """An objective with its tasks' references: ``fitness`` is a weighted mean, or all gains.

    Args:
        weights: of the mean, summing to 1; None: every term is an objective of its own.
    """

    terms: tuple[Term, ...]
    weights: tuple[float, ...] | None

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, or ``mean``."""
        return ("mean",) if self.weights else tuple(term.task for term in self.terms)

    def fitness(self, values: Mapping[str, float]) -> Vector:
        """Returns ``(objectives,)``; see `Objective`."""
        gains = [term.gain(_finite(values, term.key)) for term in self.terms]
        if self.weights is None:
            return np.array(gains, np.float64)
        mean = math.fsum(w * gain for w, gain in zip(self.weights, gains, strict=True))
        return np.array([mean], np.float64)

    def __call__(self, scores: Mapping[str, Score]) -> tuple[Vector, Vector | None]:
        """Returns fitness and cases; see `Objective`."""
        fitness = self.fitness({key: score.value for key, score in scores.items()})
        parts = []
        for term in self.terms:
            cases = scores[term.key].cases
            if cases is None:
                return fitness, None
            if not np.isfinite(cases).all():
                item = int(np.flatnonzero(~np.isfinite(cases))[0])
                raise EvaluationError(f"{term.key} of item {item} is {cases[item]}")
            parts.append((term.sign * cases - term.base) / term.span)
        return fitness, np.concatenate(parts).astype(np.float64)


@dataclass(frozen=True)
class WeightedMean:
    """One objective: the weighted mean of the tasks' scores.

    Args:
        weights: task to weight, one for every task; 0 leaves a task out. None: all equal.
        normalize: ``expert``: ``(score - base) / (best expert - base)``, signed so that higher is
            better: 0 is the base and 1 the best expert of each task. ``raw``: the score itself,
            negated where it is to be minimised. A mapping says it for each task: what no expert
            is to be better at than the base, such as how much a model remembers, is raw.
        metrics: task to metric, for the tasks that are not to be judged by their main metric.
    """

    weights: Mapping[str, float] | None = None
    normalize: Normalize | Mapping[str, Normalize] = "expert"
    metrics: Mapping[str, str] | None = None

    def bind(
        self,
        directions: Mapping[str, Direction],
        main: Mapping[str, str],
        base_scores: Mapping[str, float],
        expert_scores: Mapping[str, Mapping[str, float]],
    ) -> BoundObjective:
        """Returns the objective for these tasks.

        Args:
            directions: of every ``task/metric``.
            main: task to its main ``task/metric``.
            base_scores: value of every ``task/metric`` for the base; not read where raw.
            expert_scores: the same per expert; an expert may lack the tasks it cannot do.

        Raises:
            ValueError: an unknown task or metric, weights without meaning, or a task at which no
                expert is better than the base.
        """
        weights = self._weights(tuple(main))
        tasks = [task for task in main if weights[task] > 0]
        known = _References(directions, main, base_scores, expert_scores)
        terms = known.terms(tasks, self.normalize, self.metrics)
        total = math.fsum(weights[task] for task in tasks)
        return BoundObjective(terms, tuple(weights[task] / total for task in tasks))

    def _weights(self, tasks: tuple[str, ...]) -> Mapping[str, float]:
        if not tasks:
            raise ValueError("there is no task to search on; name at least one evaluator")
        if self.weights is None:
            return dict.fromkeys(tasks, 1.0)
        _check_tasks("objective.weights", self.weights, tasks)
        left_out = [task for task in tasks if task not in self.weights]
        if left_out:
            raise ValueError(
                f"objective.weights gives no weight to {left_out}; give one to every task (0 "
                "leaves a task out)"
            )
        for task, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"objective.weights: {task} is {weight}; it must be 0 or more")
        if not any(self.weights.values()):
            raise ValueError("objective.weights are all 0; at least one task must count")
        return self.weights


@dataclass(frozen=True)
class Pareto:
    """Several objectives: one per task, each normalised as by `WeightedMean`.

    Args:
        tasks: which, in this order; None: all.
    """

    tasks: Sequence[str] | None = None
    normalize: Normalize | Mapping[str, Normalize] = "expert"
    metrics: Mapping[str, str] | None = None

    def bind(
        self,
        directions: Mapping[str, Direction],
        main: Mapping[str, str],
        base_scores: Mapping[str, float],
        expert_scores: Mapping[str, Mapping[str, float]],
    ) -> BoundObjective:
        """Returns the objective for these tasks; arguments and errors as in `WeightedMean`."""
        tasks = tuple(main) if self.tasks is None else tuple(self.tasks)
        _check_tasks("objective.tasks", tasks, tuple(main))
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"objective.tasks must name each task once, got {list(tasks)}")
        known = _References(directions, main, base_scores, expert_scores)
        return BoundObjective(known.terms(tasks, self.normalize, self.metrics), None)


@dataclass(frozen=True)
class _References:
    """The tasks, and what base and experts scored on them; arguments as in `WeightedMean`."""

    directions: Mapping[str, Direction]
    main: Mapping[str, str]
    base: Mapping[str, float]
    experts: Mapping[str, Mapping[str, float]]

    def terms(
        self,
        tasks: Sequence[str],
        normalize: Normalize | Mapping[str, Normalize],
        metrics: Mapping[str, str] | None,
    ) -> tuple[Term, ...]:
        ways = normalize if isinstance(normalize, Mapping) else dict.fromkeys(self.main, normalize)
        _check_tasks("objective.normalize", ways, tuple(self.main))
        for way in ways.values():
            if way not in ("expert", "raw"):
                raise ValueError(f"objective.normalize must be 'expert' or 'raw', got {way!r}")
        _check_tasks("objective.metrics", metrics or (), tuple(self.main))
        terms = []
        for task in tasks:
            key = self._key(task, metrics or {})
            term = Term(task, key, 1.0 if self.directions[key] == "maximize" else -1.0)
            terms.append(self._normalised(term) if ways.get(task, "expert") == "expert" else term)
        return tuple(terms)

    def _key(self, task: str, metrics: Mapping[str, str]) -> str:
        if task not in metrics:
            return self.main[task]
        key = f"{task}/{metrics[task]}"
        if key not in self.directions:
            known = [
                name.partition("/")[2] for name in self.directions if name.startswith(f"{task}/")
            ]
            raise ValueError(
                f"objective.metrics: {task} has no metric {metrics[task]!r}, only "
                f"{', '.join(known)}"
            )
        return key

    def _normalised(self, term: Term) -> Term:
        base = self.base.get(term.key, math.nan)
        if not math.isfinite(base):
            raise ValueError(
                f"task {term.task!r}: the base's {term.key} is {base}, so that nothing can be "
                "normalised by it; use objective.normalize 'raw'"
            )
        values = {
            name: scores[term.key]
            for name, scores in self.experts.items()
            if math.isfinite(scores.get(term.key, math.nan))
        }
        best = max(values, key=lambda name: term.sign * values[name], default=None)
        if best is None:
            raise ValueError(
                f"task {term.task!r}: no expert has a finite {term.key} to normalise by; use "
                "objective.normalize 'raw'"
            )
        span = term.sign * values[best] - term.sign * base
        if span <= 0:
            raise ValueError(
                f"task {term.task!r}: no expert is better than the base ({term.key}, to "
                f"{self.directions[term.key]}: base {base:.6g}, best expert {best} "
                f"{values[best]:.6g}); add an expert for it, give it weight 0, or use "
                "objective.normalize 'raw'"
            )
        return replace(term, base=term.sign * base, span=span)


def _check_tasks(
    option: str, named: Mapping[str, object] | Sequence[str], known: Sequence[str]
) -> None:
    unknown = [task for task in named if task not in known]
    if unknown:
        raise ValueError(f"{option} names unknown tasks {unknown}; known are {', '.join(known)}")


def _finite(values: Mapping[str, float], key: str) -> float:
    if key not in values:
        raise EvaluationError(
            f"the evaluation gave no {key}, only {', '.join(values) or 'nothing'}"
        )
    if not math.isfinite(values[key]):
        raise EvaluationError(f"{key} is {values[key]}; the merged model is broken on this task")
    return values[key]
