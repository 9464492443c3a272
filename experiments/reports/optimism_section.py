"""The report's section on optimism: what the winner promised, and what it holds."""

from collections.abc import Sequence

from experiments.reports.page import paragraph, section, table
from experiments.reports.table import best_of, fitness_text, number
from experiments.runs.files import Json
from experiments.runs.model_scores import ModelRow, fitness_of


def optimism_section(summary: Json, models: Sequence[ModelRow]) -> str:
    """Returns the finalists, how the winner was named, and how much it promised too much."""
    winner = best_of(models, "evolved", "search")
    held_out = winner.fitness("report") if winner is not None else None
    shrunk = _is_shrunk(summary)
    rows = []
    for rank, finalist in enumerate(summary.get("finalists") or []):
        second = fitness_text(fitness_of(finalist["selection"]))
        rows.append(
            [
                f"candidate {finalist['id']}" + (" (winner)" if rank == 0 else ""),
                fitness_text(fitness_of(finalist["search"])),
                number(finalist["shrunken"]) if shrunk else second,
                fitness_text(held_out) if rank == 0 else "not read",
            ]
        )
    head = ["finalist", "search ↑", "shrunken ↑" if shrunk else "selection ↑", "held-out ↑"]
    text = paragraph(_optimism_text(summary))
    return section("Optimism of the winner", text, table(head, rows, [0]))


def _is_shrunk(summary: Json) -> bool:
    """Whether the winner was named by estimates instead of a second look."""
    return any(each.get("shrunken") is not None for each in summary.get("finalists") or [])


def _optimism_text(summary: Json) -> str:
    optimism = summary.get("optimism")
    why = "A candidate chosen for the best of many readings looks better there than it is"
    if optimism is None:
        return f"{why}; this run has no held-out scores of winner and base to measure by how much."
    amount = f"{abs(optimism):.4f} {'more' if optimism >= 0 else 'less'}"
    text = f"{why}: on search items the winner gained {amount} on the base than on held-out items."
    if any(each["selection"] is not None for each in summary.get("finalists") or []):
        text += " The finalists were read again on selection items before the winner was named."
    if _is_shrunk(summary):
        text += (
            " The winner is the candidate with the highest estimate: its search score, shrunk "
            "towards the mean of all candidates by as much as its items leave it in doubt."
        )
    return f"{text} Of the finalists, held-out items were read for the winner alone."
