"""What held-out items can show, by the metric that judges."""

from types import SimpleNamespace
from typing import Any

import pytest

from experiments.runs.item_counts import item_counts


class _Items(list[int]):
    data, found = "file", 1000


@pytest.mark.parametrize(
    ("main", "judged", "share"),
    [
        ("acc", None, True),
        ("exact_match@strict", None, True),
        ("prompt_level_strict_acc", None, True),
        ("bleu", None, False),
        ("exposure", None, False),
        ("acc", "bleu", False),
        ("bleu", "acc_norm", True),
    ],
)
def test_points_are_for_shares_of_the_items(main: str, judged: str | None, *, share: bool) -> None:
    task = SimpleNamespace(metrics={main: "maximize"}, items=_Items(range(1000)))
    panel: Any = SimpleNamespace(evaluators={"t": task})
    points = item_counts({"report": panel}, {"t": judged} if judged else None)["t"]["points"]
    assert (points is not None) == share
