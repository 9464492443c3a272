"""What is to be maximised: scores of several tasks in, one fitness or several out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evaluators.evaluator import Direction, Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from search.normalisation import Normalize, TaskReferences, Term, check_tasks

TIE = 1e-3
"""What a tie-break adds or takes at most; one of a hundred items counts ten times as much."""


class Objective(Protocol):
    """An objective that knows its tasks; what the loop is given."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of a fitness measures."""
        ...

    @property
    def terms(self) -> tuple[Term, ...]:
        """The tasks that are to be maximised."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Every ``task/metric`` that a fitness is made of."""
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
class BoundObjective:
    """An objective with its tasks' references: ``fitness`` is a weighted mean, or all gains.

    Args:
        weights: of the mean, summing to 1; None: every term is an objective of its own.
        ties: terms that decide between equal means: ``TIE mean(tanh(gain))`` is added, and a
            score that is missing or not finite is the lowest. They belong to no case.
    """

    terms: tuple[Term, ...]
    weights: tuple[float, ...] | None
    ties: tuple[Term, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, or ``mean``."""
        return ("mean",) if self.weights else tuple(term.task for term in self.terms)

    @property
    def keys(self) -> tuple[str, ...]:
        """Every ``task/metric`` that a fitness is made of."""
        return tuple(term.key for term in (*self.terms, *self.ties))

    @property
    def linear(self) -> bool:
        """Whether a fitness is the weighted mean of cases, where each score is that of its own.

        A cap bends that: what rests on the cases alone then says nothing of the fitness.
        """
        return all(term.cap is None for term in self.terms)

    def fitness(self, values: Mapping[str, float]) -> Vector:
        """Returns ``(objectives,)``; see `Objective`."""
        gains = [term.gain(_finite(values, term.key)) for term in self.terms]
        if self.weights is None:
            return np.array(gains, np.float64)
        mean = math.fsum(w * gain for w, gain in zip(self.weights, gains, strict=True))
        finer = [_bounded(term, values.get(term.key, math.nan)) for term in self.ties]
        return np.array([mean + TIE * float(np.mean(finer or [0.0]))], np.float64)

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
            parts.append(term.case_gains(cases))
        return fitness, np.concatenate(parts)


@dataclass(frozen=True)
class WeightedMean:
    """One objective: the weighted mean of the tasks' scores.

    Args:
        weights: task to weight, one for every task; 0 leaves a task out. None: all equal.
        normalize: ``expert``: ``(score - base) / (best expert - base)``, signed so that higher is
            better: 0 is the base and 1 the best expert of each task. ``spread``: ``(score - base)
            / (best - worst)`` of base and experts, defined also where none beats the base.
            ``ratio``: ``score / best expert's``, for a score that is to be minimised ``2 - score /
            best expert's``: 1 is the best expert, and no task counts more because its expert
            gained little; raw where the best expert has 0. ``raw``: the score itself, negated
            where it is to be minimised. A mapping says it for each task: what no expert is to be
            better at than the base, such as how much a model remembers, is raw.
        metrics: task to metric, for the tasks that are not to be judged by their main metric.
        prefer: metric that judges every task that has it and that `metrics` leaves out.
        cap: most that a task may gain, or task to that; more of it counts no further, so that no
            task makes up for the others. It bends the mean: a fitness is then no mean over items,
            and racing, ``choose=shrinkage`` and paired intervals are not to be had.
        tie_break: metric that decides between equal means, such as ``log_likelihood`` between
            equal accuracies; of the tasks that have it. It adds or takes a thousandth at most.
    """

    weights: Mapping[str, float] | None = None
    normalize: Normalize | Mapping[str, Normalize] = "expert"
    metrics: Mapping[str, str] | None = None
    cap: float | Mapping[str, float] | None = None
    tie_break: str | None = None
    prefer: str | None = None

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
            ValueError: an unknown task or metric, weights or a cap without meaning, or a task
                whose span is none: no expert is better than the base, or all are equal.
        """
        weights = self._weights(tuple(main))
        tasks = [task for task in main if weights[task] > 0]
        known = TaskReferences(directions, main, base_scores, expert_scores)
        preferred = {
            t: self.prefer for t in main if self.prefer and f"{t}/{self.prefer}" in directions
        }
        metrics = {**preferred, **(self.metrics or {})}
        terms = known.terms(tasks, self.normalize, metrics, self.cap)
        total = math.fsum(weights[task] for task in tasks)
        ties = known.ties(tasks, self.tie_break) if self.tie_break else ()
        return BoundObjective(terms, tuple(weights[task] / total for task in tasks), ties)

    def _weights(self, tasks: tuple[str, ...]) -> Mapping[str, float]:
        if not tasks:
            raise ValueError("there is no task to search on; name at least one evaluator")
        if self.weights is None:
            return dict.fromkeys(tasks, 1.0)
        check_tasks("objective.weights", self.weights, tasks)
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
    cap: float | Mapping[str, float] | None = None

    def bind(
        self,
        directions: Mapping[str, Direction],
        main: Mapping[str, str],
        base_scores: Mapping[str, float],
        expert_scores: Mapping[str, Mapping[str, float]],
    ) -> BoundObjective:
        """Returns the objective for these tasks; arguments and errors as in `WeightedMean`."""
        tasks = tuple(main) if self.tasks is None else tuple(self.tasks)
        check_tasks("objective.tasks", tasks, tuple(main))
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError(f"objective.tasks must name each task once, got {list(tasks)}")
        known = TaskReferences(directions, main, base_scores, expert_scores)
        return BoundObjective(known.terms(tasks, self.normalize, self.metrics, self.cap), None)


@dataclass(frozen=True)
class BoundWorst:
    """The least gain of all tasks."""

    gains: BoundObjective

    @property
    def names(self) -> tuple[str, ...]:
        """One: the worst task."""
        return ("worst task",)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The tasks."""
        return self.gains.terms

    @property
    def keys(self) -> tuple[str, ...]:
        """Every ``task/metric`` that a fitness is made of."""
        return self.gains.keys

    def fitness(self, values: Mapping[str, float]) -> Vector:
        """Returns ``(1,)``: ``min_t gain_t``; see `Objective`."""
        return np.array([self.gains.fitness(values).min()])

    def __call__(self, scores: Mapping[str, Score]) -> tuple[Vector, Vector | None]:
        """Returns fitness, and the cases of all tasks; see `Objective`."""
        gains, cases = self.gains(scores)
        return np.array([gains.min()]), cases


@dataclass(frozen=True)
class WorstTask:
    """One objective: the gain of the task that gained least, each normalised as by `WeightedMean`.

    No task can be paid for by another. A minimum is no mean over items: racing,
    ``choose=shrinkage`` and paired intervals are not to be had.

    Args:
        tasks: which count; None: all.
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
    ) -> BoundWorst:
        """Returns the objective for these tasks; arguments and errors as in `WeightedMean`."""
        each = Pareto(self.tasks, self.normalize, self.metrics)
        return BoundWorst(each.bind(directions, main, base_scores, expert_scores))


def _bounded(tie: Term, value: float) -> float:
    return math.tanh(tie.gain(value)) if math.isfinite(value) else -1.0


def _finite(values: Mapping[str, float], key: str) -> float:
    if key not in values:
        raise EvaluationError(
            f"the evaluation gave no {key}, only {', '.join(values) or 'nothing'}"
        )
    if not math.isfinite(values[key]):
        raise EvaluationError(f"{key} is {values[key]}; the merged model is broken on this task")
    return values[key]
