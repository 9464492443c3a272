"""How many generated answers ended for want of tokens: of them a score says little."""

from collections.abc import Sequence

from experiments.runs.files import Json
from experiments.runs.model_scores import ModelRow, models_of, shown_split, tasks_of

_APART = 0.02
"""Shares that differ by more make a score a matter of length."""


def cut_off_lines(summary: Json) -> list[str]:
    """Returns a sentence with every model's share for each task that generates its answers.

    A second one warns where winner and base differ by more than two points. They are the held-out
    items' shares, or the search items' where a run has no others (there a winner has none).
    """
    models = models_of(summary)
    split = shown_split(models)
    lines = []
    for task in tasks_of(summary, split):
        known = [
            (m, share) for m in models if (share := m.cut_off(split, task.metric)) is not None
        ]
        lines += _lines(task.name, known)
    return lines


def _lines(task: str, known: Sequence[tuple[ModelRow, float]]) -> list[str]:
    if not any(share for _, share in known):
        return [f"{task}: no answer was cut off at its most tokens."] if known else []
    listed = ", ".join(f"{model.label} {share:.1%}" for model, share in known)
    lines = [f"{task}: answers cut off at their most tokens: {listed}."]
    of = {model.kind: share for model, share in known}
    if abs(of.get("evolved", 0.0) - of.get("base", 0.0)) > _APART and {"evolved", "base"} <= set(
        of
    ):
        lines.append(
            f"warning: {task}: of the base's answers {of['base']:.1%} were cut off, of the "
            f"winner's {of['evolved']:.1%}: their scores may differ by that alone; raise the "
            "task's gen_kwargs.max_gen_toks."
        )
    return lines
