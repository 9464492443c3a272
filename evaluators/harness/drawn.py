"""An lm-eval task's items as a `ItemDraw` shares them out over the panels of a search."""

from collections.abc import Sequence
from typing import Any

from evaluators.split import Split
from evaluators.tasks.data import digest
from evaluators.tasks.splits import PANELS, ItemDraw, ordered


def doc_digest(task: Any, doc: Any) -> str:
    """Returns the digest of an item: of what it asks, its choices and its answer."""
    choices = task.doc_to_choice(doc) if getattr(task.config, "doc_to_choice", None) else None
    return digest(task.doc_to_text(doc), choices, task.doc_to_target(doc))


def draw_docs(
    task: Any, draw: ItemDraw, split: str | None, shots_split: str | None
) -> tuple[list[Any], str, int]:
    """Returns the items of a panel, their split, and how many distinct ones that holds.

    Held-out items come from the test split and the others from the validation split where the
    task has both and none is named; else all come from one. Few-shot examples out of a split that
    is shared out are items of it that stand on no panel, the same in every prompt.

    Args:
        split: that all panels share; None: see above.
        shots_split: what few-shot examples are drawn from; None: there are none.
    """
    name, docs, among = _pool(task, draw.panel, split)
    what = f"the {name} split of lm-eval task {task.task_name!r}"
    order = _ordered(task, docs, draw)
    shots = task.config.num_fewshot if shots_split is not None else 0
    if shots and shots_split == name:
        _show(task, [docs[i] for i in order[:shots]])
        order = order[shots:]
    elif shots and shots_split in (shared := _shared(task, split)):  # by the other panels
        shown = shared[shots_split]
        _show(task, [shown[i] for i in _ordered(task, shown, draw)[:shots]])
    part = order[draw.part(len(order), what, among)]
    return [docs[i] for i in part], name, len(order)


def _pool(task: Any, panel: Split, split: str | None) -> tuple[str, list[Any], Sequence[Split]]:
    """Returns the split that a panel's items come from, these, and the panels that share it."""
    shared = list(_shared(task, split).items())
    if len(shared) == 1:
        return *shared[0], PANELS
    return (*shared[1], PANELS[2:]) if panel == "report" else (*shared[0], PANELS[:2])


def _shared(task: Any, split: str | None) -> dict[str, list[Any]]:
    """Returns the items of the splits that are shared out: one, or validation and test."""
    validation, test = task.config.validation_split, task.config.test_split
    if split is None and validation and test and validation != test:
        return {validation: list(task.validation_docs()), test: list(task.test_docs())}
    return {str(test or validation): list(task.eval_docs)}


def _ordered(task: Any, docs: Sequence[Any], draw: ItemDraw) -> list[int]:
    digests = [doc_digest(task, doc) for doc in docs]
    return ordered(digests, [task.doc_to_target(doc) for doc in docs], draw.seed)


class _SameExamples:
    """A sampler that shows the same examples in every prompt."""

    def __init__(self, docs: Sequence[Any]) -> None:
        self._docs = list(docs)

    def sample(self, n: int, eval_doc: Any = None) -> list[Any]:
        del eval_doc  # no item of a panel is among the examples
        return self._docs[:n]


def _show(task: Any, docs: Sequence[Any]) -> None:
    if len(docs) < task.config.num_fewshot:
        raise ValueError(
            f"lm-eval task {task.task_name!r} has {len(docs)} distinct items for its "
            f"{task.config.num_fewshot} few-shot examples: lower num_fewshot"
        )
    task.sampler = _SameExamples(docs)
