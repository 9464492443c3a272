"""What the steps of a search may see of its items: all scores, unless the items are private."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from evaluators.evaluator import Score
from evaluators.panel import Panel
from experiments.runs.errors import explained
from experiments.runs.model_scores import ModelScores
from experiments.runs.progress import ProgressBar
from experiments.scoring.choose import ScoringOptions, open_evaluation, open_pool
from experiments.searches.references import References
from experiments.setup.ingredients import Ingredients
from experiments.setup.initial import StartScores
from experiments.setup.problem import Problem
from merging.plan import Plan
from merging.privacy.ledger import Ledger
from merging.spaces.space import SearchSpace
from search.loop.generational import search
from search.loop.history import Record
from search.loop.session import SearchResult
from search.loop.steady_state import search_steadily
from search.objective import BoundObjective, Objective
from search.winners.rescoring import rescore
from search.winners.selection import (
    Finalist,
    finalist_of,
    finalists,
    second_look,
    shrunken_finalists,
)

Loop: TypeAlias = Callable[..., SearchResult]
"""A search, but for its objective, history, budget and the keywords that follow these."""


class Disclosure(Protocol):
    """Decides what of the items' scores reaches strategy, files and people.

    Attributes:
        references: scores of models on the items that the steps of a search may read.
    """

    references: References

    def items(self) -> Mapping[str, Any]:
        """Returns what tells the items from others, a split each, as JSON values."""
        ...

    def start_scores(self, search: Mapping[str, ModelScores], objective: Objective) -> StartScores:
        """Returns what the choice of a start may know, given the references' scores."""
        ...

    def loop(self, problem: Problem, objective: Objective) -> Loop:
        """Returns the search of `problem`, from its strategy and what scores its candidates."""
        ...

    def comparable(
        self, problem: Problem, result: SearchResult, objective: Objective
    ) -> tuple[SearchResult, int]:
        """Returns the result with records that can be compared, and how many items were asked."""
        ...

    def choose(
        self, problem: Problem, result: SearchResult, objective: Objective
    ) -> list[Finalist]:
        """Returns the best few, the winner first."""
        ...

    def population(self, problem: Problem, result: SearchResult) -> list[Record]:
        """Returns the candidates that may be kept beside the winner, of what the loop gave."""
        ...

    def charged(self, ledger: Ledger, result: SearchResult) -> Ledger:
        """Returns the ledger with what the search itself has spent."""
        ...


@dataclass
class FullDisclosure:
    """Every score is seen and written down as it is.

    Args:
        run: directory of the search.
        choice: ``second_look`` or ``shrinkage``: how the winner is named.
        count: of the finalists.
    """

    run: Path
    references: References
    scoring: ScoringOptions
    asynchronous: bool
    choice: str
    count: int

    def items(self) -> Mapping[str, Any]:
        """Returns the digest of every task's items."""
        panels = self.references.ingredients.panels
        return {split: panel.contents for split, panel in panels.items()}

    def start_scores(self, search: Mapping[str, ModelScores], objective: Objective) -> StartScores:
        """Returns the experts' fitness on the search items, and that of any plan when asked.

        That of a static merge is known.
        """

        def fitness(scores: ModelScores) -> float | None:
            if scores.failure is not None:
                return None
            return float(np.mean(objective.fitness(scores.scores)))

        def score(name: str, plan: Plan) -> float | None:
            ingredients = self.references.ingredients
            if (static := self.references.static_of(plan)) is not None:
                return statics[static]
            weights = partial(plan.weights, ingredients.held.reading())
            panel = ingredients.panels["search"]
            return fitness(self.references.score_one(name, "start", panel, weights))

        experts = {m.name: fitness(m) for m in search.values() if m.kind == "expert"}
        statics = {m.name: fitness(m) for m in search.values() if m.kind == "static"}
        return StartScores(experts, score)

    def loop(self, problem: Problem, objective: Objective) -> Loop:
        """Returns the search by generations, or the steady state."""
        ingredients = self.references.ingredients
        if self.asynchronous:
            pool = open_pool(ingredients, problem, self.scoring)
            return partial(search_steadily, problem.strategy, pool)  # type: ignore[arg-type]
        evaluation = open_evaluation(ingredients, problem, self.scoring, objective)
        return partial(search, problem.strategy, evaluation)

    def comparable(
        self, problem: Problem, result: SearchResult, objective: Objective
    ) -> tuple[SearchResult, int]:
        """Returns the result itself, or records that were scored once more on all search items.

        Where every generation has items of its own, these are the best few of all generations,
        twice as many as there are finalists.
        """
        ingredients, common = self.references.ingredients, self.scoring.common
        panel = ingredients.panels["search"]
        if common is None:
            return result, _items_asked(result, panel.item_count)
        most = 2 * self.count
        with ProgressBar(most, "the best again on all search items", "candidate") as bar:
            again = rescore(
                result.records,
                most,
                record_scorer(ingredients, problem.space, panel, bar.update),
                objective,
                self.run / "rescored.jsonl",
            )
        items = result.evaluations * common.item_count + len(again) * panel.item_count
        return replace(result, records=tuple(again)), items

    def choose(
        self, problem: Problem, result: SearchResult, objective: Objective
    ) -> list[Finalist]:
        """Returns the best few by a second look, or by their shrunken fitness."""
        if self.choice == "second_look":
            return look_again(self.references, problem, result, objective, self.count, self.run)
        assert isinstance(objective, BoundObjective), "refused before the search"
        assert objective.weights is not None, "refused before the search"
        evaluators = self.references.ingredients.panels["search"].evaluators
        strata = [
            (len(evaluators[term.task].items), weight)
            for term, weight in zip(objective.terms, objective.weights, strict=True)
        ]
        with explained():
            return shrunken_finalists(result.records, self.count, strata)

    def population(self, problem: Problem, result: SearchResult) -> list[Record]:
        """Returns the final population."""
        return living(problem, result)

    def charged(self, ledger: Ledger, result: SearchResult) -> Ledger:
        """Returns the ledger itself: these items are not private."""
        return ledger


def living(problem: Problem, result: SearchResult) -> list[Record]:
    """Returns who lives at the end and the best, each genome once, in the order of ids.

    Who lives is the strategy's population or archive, where it has one; else the last generation
    that it was told. Failures do not live.
    """
    members: Sequence[int] = getattr(problem.strategy, "members", result.last)
    by_id = {record.id: record for record in result.records}
    alive = [by_id[i] for i in sorted({*members, *result.best})]
    first = {record.id if record.same_as is None else record.same_as for record in alive}
    return [by_id[i] for i in sorted(first) if by_id[i].fitness is not None]


def look_again(
    references: References,
    problem: Problem,
    result: SearchResult,
    objective: Objective,
    count: int,
    run: Path,
) -> list[Finalist]:
    """Returns the best `count`, the winner first, ranked on items that were not ranked on yet.

    Those that the strategy keeps are ranked with them. Without selection items the search items
    decide, but where the strategy keeps a mean of candidates, which these items have flattered
    less: that is named unless its start, kept before it, is better. `run` is the directory of the
    search.
    """
    keeps: Sequence[int] = getattr(problem.strategy, "keeps", ())
    panel = references.ingredients.panels.get("selection")
    if panel is None:
        unseen = [finalist_of(record) for record in finalists(result.records, count, keeps)]
        kept = {each.id: float(np.mean(each.search)) for each in unseen if each.id in keeps}
        asked = len(keeps) > 1 and keeps[-1] in kept  # a mean that failed or repeats is not there
        named = max(kept, key=lambda i: (kept[i], i)) if asked else None
        return sorted(unseen, key=lambda f: (f.id != named, -float(np.mean(f.search)), f.id))
    most, path = min(count + len(keeps), len(result.records)), run / "finalists.jsonl"
    with ProgressBar(most, "second look on selection items", "candidate") as bar:
        evaluate = record_scorer(references.ingredients, problem.space, panel, bar.update)
        return second_look(result.records, count, evaluate, objective, path, keeps)


def unseen_finalists(result: SearchResult, count: int) -> list[Finalist]:
    """Returns the best few by their fitness on the search items alone."""
    return [finalist_of(record) for record in finalists(result.records, count)]


def record_scorer(
    ingredients: Ingredients,
    space: SearchSpace[Any],
    panel: Panel,
    on_scored: Callable[[], object],
) -> Callable[[Record], dict[str, Score]]:
    """Returns what scores the genome of a record on `panel`; `on_scored` is called after each."""
    scorer = ingredients.scorer(panel)

    def score(record: Record) -> dict[str, Score]:
        try:
            return scorer(space.decode(space.from_json(record.genome)))
        finally:
            on_scored()

    return score


def _items_asked(result: SearchResult, items: int) -> int:
    """Returns how many items were asked, of all candidates together."""
    evaluated = (record for record in result.records if record.same_as is None)
    return sum(items if record.asked is None else record.asked for record in evaluated)
