"""Scores as gains: base and experts give every task its zero and its unit, once in a run."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from evaluators.evaluator import Direction
from merging.arrays import Vector

logger = logging.getLogger(__name__)
Normalize: TypeAlias = Literal["expert", "spread", "ratio", "raw"]
"""How scores become gains; a mapping says it task by task, ``expert`` for those it leaves out."""

_WAYS = ("expert", "spread", "ratio", "raw")
_ROUNDING = 1e-6
"""Differences below this share of a score are what float32 arithmetic makes of equal models."""


@dataclass(frozen=True)
class Term:
    """One task's part: ``gain = min((sign * score - base) / span, cap)``.

    Args:
        task: name of the task.
        key: ``task/metric`` of the score.
        sign: 1 where the metric is to be maximised, -1 where minimised.
        base: ``sign * score`` that gains 0: the base's, but where scores are ratios or raw.
        span: between the models of `ends`; the best expert's score where scores are ratios, 1
            where they are raw.
        cap: most that the task may give; None: no limit.
        ends: names of the two models that the span lies between, the worse first; None: the base.
    """

    task: str
    key: str
    sign: float
    base: float = 0.0
    span: float = 1.0
    cap: float | None = None
    ends: tuple[str | None, str | None] | None = None

    def gain(self, value: float) -> float:
        """Returns the task's gain: 0 like the base, or as ratio 1 like the best expert."""
        gain = (self.sign * value - self.base) / self.span
        return gain if self.cap is None else min(gain, self.cap)

    def case_gains(self, cases: Vector) -> Vector:
        """Returns the items' gains; their mean is `gain` where the score is the items' mean.

        A cap is on that mean, and on no single item.
        """
        gains: Vector = (self.sign * cases - self.base) / self.span
        return gains.astype(np.float64)

    def needed_items(self, worse: Vector, better: Vector) -> int | None:
        """Returns how many items would show the span clearly; None: these do.

        Clear is twice the standard error of the paired difference, ``SE = sd / sqrt(n)``; it falls
        with the items, so that ``n (2 SE / span)^2`` of them would do.

        Args:
            worse: ``(items,)`` scores of the first model of `ends`.
            better: the same of the second.
        """
        if len(worse) < 2:
            return None  # nothing is known of the noise
        error = float((better - worse).std(ddof=1)) / math.sqrt(len(worse))
        share = 2 * error / self.span
        return math.ceil(len(worse) * share**2) if share > 1 else None


@dataclass(frozen=True)
class TaskReferences:
    """The tasks, and what base and experts scored on them.

    Args:
        directions: of every ``task/metric``.
        main: task to its main ``task/metric``.
        base: value of every ``task/metric`` for the base; not read where raw.
        experts: the same per expert; an expert may lack the tasks it cannot do.
    """

    directions: Mapping[str, Direction]
    main: Mapping[str, str]
    base: Mapping[str, float]
    experts: Mapping[str, Mapping[str, float]]

    def terms(
        self,
        tasks: Sequence[str],
        normalize: Normalize | Mapping[str, Normalize],
        metrics: Mapping[str, str] | None,
        cap: float | Mapping[str, float] | None,
    ) -> tuple[Term, ...]:
        """Returns a term per task; errors as in `search.objective.WeightedMean.bind`."""
        ways = normalize if isinstance(normalize, Mapping) else dict.fromkeys(self.main, normalize)
        caps = cap if isinstance(cap, Mapping) else dict.fromkeys(self.main, cap)
        for option, named in (("normalize", ways), ("metrics", metrics or {}), ("cap", caps)):
            check_tasks(f"objective.{option}", named, tuple(self.main))
        for way in ways.values():
            if way not in _WAYS:
                raise ValueError(f"objective.normalize must be one of {_WAYS}, got {way!r}")
        terms = []
        for task in tasks:
            key, way = self._key(task, metrics or {}), ways.get(task, "expert")
            sign = 1.0 if self.directions[key] == "maximize" else -1.0
            term = Term(task, key, sign, cap=_checked(task, caps.get(task), way))
            terms.append(term if way == "raw" else self._normalised(term, way))
        return tuple(terms)

    def ties(self, tasks: Sequence[str], metric: str) -> tuple[Term, ...]:
        """Returns a term for every task with `metric`, in units of the spread of its models.

        One that tells no model from another, or cannot be read of the base, breaks no tie.
        """
        terms = []
        for task in tasks:
            key = f"{task}/{metric}"
            if key in self.directions:
                sign = 1.0 if self.directions[key] == "maximize" else -1.0
                with suppress(ValueError):
                    terms.append(self._normalised(Term(task, key, sign), "spread"))
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

    def _normalised(self, term: Term, way: Normalize) -> Term:
        base = self.base.get(term.key, math.nan)
        if not math.isfinite(base):
            raise ValueError(
                f"task {term.task!r}: the base's {term.key} is {base}, so that nothing can be "
                "normalised by it; use objective.normalize 'raw'"
            )
        experts: dict[str | None, float] = {
            name: term.sign * scores[term.key]
            for name, scores in self.experts.items()
            if math.isfinite(scores.get(term.key, math.nan))
        }
        if not experts:
            raise ValueError(
                f"task {term.task!r}: no expert has a finite {term.key} to normalise by; use "
                "objective.normalize 'raw'"
            )
        if way == "ratio":
            return _ratio(term, term.sign * max(experts.values()))
        gains = {None: term.sign * base, **experts}
        worse, better = None, max(experts, key=experts.__getitem__)
        if way == "spread":
            worse, better = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
        span = gains[better] - gains[worse]
        if span <= _ROUNDING * max(abs(gains[better]), abs(gains[worse])):
            raise ValueError(self._no_span(term, way, f"{better} {term.sign * gains[better]:.6g}"))
        return replace(term, base=gains[None], span=span, ends=(worse, better))

    def _no_span(self, term: Term, way: Normalize, best: str) -> str:
        where = f"({term.key}, to {self.directions[term.key]}: base {self.base[term.key]:.6g}"
        if way == "spread":
            return (
                f"task {term.task!r}: base and experts are all equal {where}); ask other items, "
                "give it weight 0, or use objective.normalize 'raw'"
            )
        return (
            f"task {term.task!r}: no expert is better than the base {where}, best expert {best}); "
            "add an expert for it, give it weight 0, or use objective.normalize 'spread' or 'raw'"
        )


def _ratio(term: Term, best: float) -> Term:
    """Returns a term with ``gain = 1 + sign (score - best) / best``: score / best to maximise.

    Where the best is 0, as where no expert solves a task yet, the score itself counts.
    """
    if best == 0:
        logger.warning(
            "task %r: the best expert's %s is 0, of which nothing is a ratio: the score itself "
            "counts, as with objective.normalize 'raw'",
            term.task,
            term.key,
        )
        return term
    if best < 0:
        raise ValueError(
            f"task {term.task!r}: the best expert's {term.key} is {best:.6g}, of which nothing is "
            "a ratio; use objective.normalize 'expert', 'spread' or 'raw' for it"
        )
    return replace(term, base=(term.sign - 1) * best, span=best)


def _checked(task: str, cap: float | None, way: Normalize) -> float | None:
    if cap is not None and not math.isfinite(cap):
        raise ValueError(f"objective.cap of {task} must be finite or null, got {cap}")
    if cap is not None and way != "raw" and cap <= 0:
        raise ValueError(
            f"objective.cap of {task} is {cap}: the base gains 0, so that nothing better would "
            "count; choose a cap above 0"
        )
    return cap


def check_tasks(
    option: str, named: Mapping[str, object] | Sequence[str], known: Sequence[str]
) -> None:
    """Raises ValueError where an option names a task that there is not."""
    unknown = [task for task in named if task not in known]
    if unknown:
        raise ValueError(f"{option} names unknown tasks {unknown}; known are {', '.join(known)}")
