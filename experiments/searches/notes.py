"""What a reader of a run has to know: spans that may be luck, a winner that was not seen twice."""

from collections.abc import Sequence
from pathlib import Path

from experiments.runs.item_scores import ItemScores, read_item_scores
from search.loop.history import Record
from search.normalisation import Term
from search.objective import Objective
from search.winners.selection import Finalist


def span_warnings(run: Path, objective: Objective) -> list[str]:
    """Returns a sentence for every task whose span may be luck, with the items that would do.

    Read from the items' scores of base and experts on the search items, this start's or an
    earlier one's; a task without them is passed over.
    """
    items = read_item_scores(run, "search")
    return [line for term in objective.terms for line in _warning(term, items)]


def _warning(term: Term, items: dict[tuple[str, str], ItemScores]) -> list[str]:
    if term.ends is None:
        return []
    models = [("base", "base") if name is None else ("expert", name) for name in term.ends]
    cases = [items[model].cases.get(term.key) for model in models if model in items]
    if len(cases) < 2 or cases[0] is None or cases[1] is None:
        return []
    if (needed := term.needed_items(cases[0], cases[1])) is None:
        return []
    worse, better = (f"expert {name}" if kind == "expert" else kind for kind, name in models)
    return [
        f"task {term.task!r}: {better} is not clearly better than {worse} ({term.key} by "
        f"{term.span:.2g}, less than twice its standard error on {len(cases[0])} search items), "
        f"so that the unit of this task's fitness is largely luck: {needed} such items would do, "
        "or objective.normalize 'raw' for it"
    ]


def unscored_again(records: Sequence[Record]) -> list[str]:
    """Returns a sentence where `rescore` could score none, so that all kept what they had."""
    kept = [record for record in records if record.fitness is not None and record.failure]
    if not kept:
        return []
    return [
        f"all {len(kept)} candidates that were scored again on all search items failed there, so "
        "that their fitness on the items of their generations, where chance has its part, names "
        f"the finalists; candidate {kept[0].id}: {kept[0].failure}"
    ]


def unseen_winner(winner: Finalist) -> list[str]:
    """Returns a sentence where a second look at the finalists gave no score to any."""
    if winner.failure is None:
        return []
    return [
        "all finalists failed on the selection items, so that the search items alone name the "
        f"winner; candidate {winner.id}: {winner.failure}"
    ]
