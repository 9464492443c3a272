"""How many items every task has on every panel, and what its held-out items can show."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.panel import Panel
from evaluators.split import Split

_SPLITS: Mapping[Split, str] = {
    "search": "search",
    "selection": "selection",
    "report": "held out",
}
_SHARE = re.compile(r"(^|_)acc($|_)|^(accuracy|exact_match)$")  # metrics whose cases are 0 or 1
_DISAGREE = 0.1  # share of the items of which one of two merges is right alone
_QUANTILES = 1.96 + 0.84  # of a two-sided test at 5 % that finds a difference in 4 of 5 samples


def seen_points(items: int) -> float:
    """Returns the least difference of two accuracies that so many paired items show, in points.

    An item's difference is 1, 0 or -1 and not 0 for a share q of them, so that its variance is q,
    less the difference's square: 100 (z_0.975 + z_0.8) sqrt(q / n), q = 0.1.

    Example:
        >>> round(seen_points(1000), 1), round(seen_points(7840), 1)
        (2.8, 1.0)
    """
    return 100 * _QUANTILES * math.sqrt(_DISAGREE / items)


def items_for(points: float) -> int:
    """Returns how many items show a difference of so many points; see `seen_points`."""
    return round(_DISAGREE * (100 * _QUANTILES / points) ** 2)  # q (z / difference)^2


def item_counts(
    panels: Mapping[Split, Panel], objective: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns what there is of every task.

    Its items found, where they were counted; those on each panel; and `points` that the held-out
    ones can show, None where the metric that judges the task is not known to be a share of them.

    Args:
        objective: options that say which tasks are not judged by their main metric.
    """
    counts: dict[str, dict[str, Any]] = {}
    for split, panel in panels.items():
        for task, evaluator in panel.evaluators.items():
            own = counts.setdefault(task, {"found": {}, "points": None})
            own[split] = len(evaluator.items)
            own["found"][evaluator.items.data] = evaluator.items.found
            preferred = objective.get("prefer") or ""
            main = preferred if preferred in evaluator.metrics else next(iter(evaluator.metrics))
            metric = (objective.get("metrics") or {}).get(task, main)
            if split == "report" and _SHARE.search(metric.partition("@")[0]):
                own["points"] = seen_points(own[split])
    for own in counts.values():
        found = own["found"].values()  # a split of their own for held-out items adds up
        own["found"] = None if None in found else sum(found)
    return counts


def count_rows(counts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns a table of `item_counts` for a person, its head first."""
    rows = [["task", "found", *_SPLITS.values(), "shows from"]]
    for task, own in counts.items():
        numbers = [own["found"], *(own.get(split) for split in _SPLITS)]
        cells = ["-" if number is None else f"{number:,}" for number in numbers]
        points = own["points"]
        rows.append([task, *cells, "-" if points is None else f"{points:.1f} points"])
    return rows


def count_lines(counts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the table as lines, and a warning where held-out items cannot show one point."""
    rows = count_rows(counts)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{'' if number else 'items':<12}"
        + "  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])])
        for number, row in enumerate(rows)
    ]
    return [*lines, *(f"warning     {sentence}" for sentence in too_few(counts))]


def too_few(counts: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Returns a sentence if held-out items are too few to show a difference of 1 point."""
    few = [task for task, own in counts.items() if own["points"] and round(own["points"], 1) > 1]
    if not few:
        return []
    return [
        f"{', '.join(few)}: too few held-out items to show a difference of 1 point, which takes "
        f"{items_for(1):,} (for two merges of which only one is right on {_DISAGREE:.0%} of them)"
    ]
