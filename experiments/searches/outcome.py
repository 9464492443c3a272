"""What a search has found out, step by step: the values that its last steps write down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs.model_scores import ModelScores
from experiments.searches.references import References
from merging.plan import Plan
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe
from merging.spaces.space import SearchSpace
from search.loop.session import SearchResult
from search.objective import Objective
from search.winners.selection import Finalist


@dataclass(frozen=True)
class InHull:
    """What the companion search inside the hull found.

    Args:
        winner: after its own second look.
        scores: of the winner on the search items, by ``task/metric``.
        report: the winner on the held-out items; None: there are none.
    """

    evaluations: int
    winner: Finalist
    scores: Mapping[str, float]
    plan: Plan
    report: ModelScores | None


@dataclass(frozen=True)
class SearchOutcome:
    """All that a finished search has to show.

    Args:
        run: its directory.
        options: its configuration, resolved.
        objective: in units of base and experts on the search items; for every split.
        search: base, experts and static merges on the search items, by label.
        result: of the loop; its records are those that can be compared.
        item_evaluations: search items that candidates were asked, each time counted, and merges
            that the strategy pays for.
        finalists: the winner first.
        ledger: what the winner's private data cost.
        inside: the best point inside the hull at equal budget; None: there is none.
        population: recipes of who lived at the end, by the id of the candidate; only where a zoo
            is to take them.
        notes: what a reader has to know of how all this came about, a sentence each.
        report: all models on the held-out items; None: there are none.
    """

    run: Path
    identity: str
    options: Mapping[str, Any]
    references: References
    space: SearchSpace[Any]
    objective: Objective
    search: Mapping[str, ModelScores]
    result: SearchResult
    item_evaluations: int
    finalists: Sequence[Finalist]
    recipe: Recipe
    ledger: Ledger
    inside: InHull | None
    report: Mapping[str, ModelScores] | None
    population: Mapping[int, Recipe]
    notes: Sequence[str]
