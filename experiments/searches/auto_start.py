"""What a strategy that starts from the best of many merges owes for them, and what it says."""

from dataclasses import replace
from typing import Any

from experiments.searches.references import References
from experiments.setup.problem import Problem
from search.loop.session import Budget
from search.objective import Objective
from search.strategies.auto import Auto
from search.strategy import Strategy


def charged(budget: Budget, strategy: Strategy[Any], references: References) -> Budget:
    """Returns what a budget leaves once the choice of the start is paid for; tells the strategy.

    Static merges are scored for the table of every run; only a strategy that starts from the best
    of them counts them, at most as half of its evaluations.
    """
    if not isinstance(strategy, Auto) or budget.evaluations is None:
        return budget
    strategy.spent = min(len(references.starts()), budget.evaluations // 2)
    return replace(budget, evaluations=budget.evaluations - strategy.spent)


def owed(strategy: Strategy[Any]) -> int:
    """Returns how many evaluations of its budget a strategy pays for the choice of its start."""
    return strategy.spent if isinstance(strategy, Auto) else 0


def account(
    problem: Problem, references: References, objective: Objective, evaluations: int
) -> list[str]:
    """Returns one paragraph on where such a strategy started, what it searched and why.

    Args:
        evaluations: of all, those for the choice of the start included.
    """
    strategy = problem.strategy
    if not isinstance(strategy, Auto):
        return []
    starts = [model.judged(objective) for model in references.starts()]
    words = [
        f"auto: {len(starts)} static merges were scored on the search items, which counts as "
        f"{strategy.spent} of {evaluations} evaluations"
    ]
    if starts:
        best = max(starts, key=lambda model: model.fitness or ())
        fitness = " ".join(f"{value:.4f}" for value in best.fitness or ())
        words.append(f"the best is {best.name} with fitness {fitness}")
    words.append(f"the search starts at {problem.first.name}")
    return ["; ".join([*words, *strategy.story()])]
