"""What tells the items of a split from others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evaluators.items import ItemSet, TaskItem
from evaluators.requests import Generate, Loglikelihood

ITEM: TaskItem[Any] = TaskItem("a digest", (Loglikelihood((1, 2), (3,)), Generate((4,), 5)), 1)


@pytest.mark.parametrize(
    "other",
    [
        replace(ITEM, target=0),
        replace(ITEM, digest="another"),
        replace(ITEM, requests=ITEM.requests[:1]),
        replace(ITEM, requests=(Loglikelihood((9, 2), (3,)), ITEM.requests[1])),
    ],
)
def test_content_tells_of_all_that_scores_rest_on(other: TaskItem[Any]) -> None:
    content = ItemSet("data", (ITEM, ITEM)).content
    assert ItemSet("elsewhere", (ITEM, replace(ITEM))).content == content
    assert ItemSet("data", (ITEM, other)).content != content
    assert ItemSet("data", (ITEM,)).content != content


def test_content_does_not_depend_on_where_objects_lie() -> None:
    one, two = (ItemSet("data", (replace(ITEM, target=object()),)).content for _ in range(2))
    assert one == two
