"""What held-out items can show, by the metric that judges."""

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.runs.item_counts import item_counts


class _Items(list[int]):
    data, found = "file", 1000


@pytest.mark.parametrize(
    ("main", "judged", "prefer", "share"),
    [
        ("acc", None, None, True),
        ("exact_match@strict", None, None, True),
        ("prompt_level_strict_acc", None, None, True),
        ("bleu", None, None, False),
        ("exposure", None, None, False),
        ("acc", "bleu", None, False),
        ("bleu", "acc_norm", None, True),
        ("acc", None, "smooth", False),
        ("acc", None, "unknown", True),
        ("acc", "acc_norm", "smooth", True),
    ],
)
def test_points_are_for_shares_of_the_items(
    main: str, judged: str | None, prefer: str | None, *, share: bool
) -> None:
    metrics = dict.fromkeys((main, "smooth"), "maximize")
    task = SimpleNamespace(metrics=metrics, items=_Items(range(1000)))
    panel: Any = SimpleNamespace(evaluators={"t": task})
    objective = {"metrics": {"t": judged} if judged else None, "prefer": prefer}
    points = item_counts({"report": panel}, objective)["t"]["points"]
    assert (points is not None) == share
