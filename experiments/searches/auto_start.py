"""What a strategy that starts from the best of many merges owes for them, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.runs.model_scores import ModelScores
from experiments.setup.problem import Problem
from search.loop.session import Budget
from search.objective import Objective
from search.strategies.auto import Auto
from search.strategy import Strategy

_LITTLE = 0.5
"""Share of the expert's gain below which a task is named."""

_LOSS = 0.05
"""Share of the base's score that a task without a better expert may lose before it is named."""


def charged(budget: Budget, strategy: Strategy[Any], starts: Sequence[ModelScores]) -> Budget:
    """Returns what a budget leaves once the choice of the start is paid for; tells the strategy.

    Static merges are scored for the table of every run; only a strategy that starts from the best
    of them counts these, at most as half of its evaluations.

    Args:
        starts: what was scored to choose the start.
    """
    if not isinstance(strategy, Auto) or budget.evaluations is None:
        return budget
    strategy.spent = min(len(starts), budget.evaluations // 2)
    return replace(budget, evaluations=budget.evaluations - strategy.spent)


def owed(strategy: Strategy[Any]) -> int:
    """Returns how many evaluations of its budget a strategy pays for the choice of its start."""
    return strategy.spent if isinstance(strategy, Auto) else 0


def account(
    problem: Problem, starts: Sequence[ModelScores], objective: Objective, evaluations: int
) -> list[str]:
    """Returns one paragraph on where such a strategy started, what it searched and why.

    Args:
        starts: what was scored to choose the start; empty: it was given.
        evaluations: of all, those for the choice of the start included.
    """
    strategy = problem.strategy
    if not isinstance(strategy, Auto):
        return []
    words = []
    if starts:
        judged = [model.judged(objective) for model in starts]
        best = max(judged, key=lambda model: model.fitness or ())
        fitness = " ".join(f"{value:.4f}" for value in best.fitness or ())
        words = [
            f"{len(starts)} merges were scored on the search items, which counts as "
            f"{strategy.spent} of {evaluations} evaluations",
            f"the best is {best.name} with fitness {fitness}",
        ]
    words.append(f"the search starts at {problem.first.name}")
    return ["auto: " + "; ".join([*words, *strategy.story()])]


def weak_tasks(
    strategy: Strategy[Any],
    objective: Objective,
    models: Mapping[str, ModelScores],
    winner: Mapping[str, float],
) -> list[str]:
    """Returns a sentence for each task at which the winner keeps little of an expert's gain.

    Or, where no expert gains anything, at which it lies clearly below the base.

    Args:
        models: base and experts, by label, on the items that the winner's scores are from.
        winner: its scores, by ``task/metric``.
    """
    if not isinstance(strategy, Auto):
        return []
    lines = []
    for term in objective.terms:
        of_kind: dict[str, dict[str, float]] = {"base": {}, "expert": {}}
        for model in models.values():
            if model.kind in of_kind and term.key in model.scores:
                of_kind[model.kind][model.name] = term.sign * model.scores[term.key]
        if not (of_kind["base"] and of_kind["expert"] and term.key in winner):
            continue
        (base,), experts = of_kind["base"].values(), of_kind["expert"]
        best = max(experts, key=experts.__getitem__)
        gained, gain = term.sign * winner[term.key] - base, experts[best] - base
        if gain > 0 and gained < _LITTLE * gain:
            lines.append(
                f"task {term.task!r} was given up in part: the merge keeps {gained / gain:.0%} of "
                f"what expert {best} gains on the base ({term.key} {winner[term.key]:.4g}, expert "
                f"{term.sign * experts[best]:.4g}, base {term.sign * base:.4g}); a larger weight "
                "in objective.weights, or objective=worst, asks for more"
            )
        elif gain <= 0 and -gained > _LOSS * abs(base):
            lines.append(
                f"task {term.task!r} was given up in part: no expert is better than the base, and "
                f"the merge is worse ({term.key} {winner[term.key]:.4g}, base "
                f"{term.sign * base:.4g}); a larger weight in objective.weights, or "
                "objective=worst, asks for more"
            )
    return lines
