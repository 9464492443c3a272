"""Whether runs were measured alike: nothing else may be compared."""

import math
from collections.abc import Sequence

from experiments.compare.groups import Run

_NEAR = 1e-2  # two machines read the same base on the same items nearer to each other than this


def check_comparable(runs: Sequence[Run]) -> None:
    """Checks that all runs read the same held-out items of the same tasks in the same units.

    Raises:
        ValueError: two runs do not; names them, the task and what differs.
    """
    first, *others = runs
    for run in others:
        for check in (_other_tasks, _other_items, _other_units, _other_base):
            if reason := check(first, run):
                raise ValueError(f"{first.path} and {run.path} cannot be compared: {reason}")


def _other_tasks(one: Run, other: Run) -> str | None:
    first, second = ([f"{t.metric} ({t.direction})" for t in run.tasks] for run in (one, other))
    if first != second:
        return f"their tasks are {', '.join(first)} and {', '.join(second)}"
    if len(one.summary["objectives"]) != len(other.summary["objectives"]):
        return "they have different numbers of objectives"
    return None


def _other_items(one: Run, other: Run) -> str | None:
    first, second = (next(iter(run.items.values()), None) for run in (one, other))
    if first is None or second is None:
        return None
    for task, digest in first.items.items():
        if second.items.get(task) != digest:
            return (
                f"they read different held-out items of task {task!r}, or in another order; "
                "search again with the same report_on"
            )
    for key, cases in first.cases.items():
        if key in second.cases and len(second.cases[key]) != len(cases):
            return f"{key} has {len(cases)} items and {len(second.cases[key])}"
    return None


def _other_units(one: Run, other: Run) -> str | None:
    first, second = one.summary.get("terms"), other.summary.get("terms")
    if not first or not second:
        return None
    if [term["key"] for term in first] != [term["key"] for term in second]:
        return "their objectives count other tasks or metrics"
    for term, other_term in zip(first, second, strict=True):
        for name in ("weight", "sign", "base", "span"):
            if not _near(term[name], other_term[name]):
                return (
                    f"their fitness has other units: {term['key']} enters with {name} "
                    f"{term[name]:.6g} and {other_term[name]:.6g}; compare runs with the same "
                    "base, experts, search items and objective"
                )
    return None


def _other_base(one: Run, other: Run) -> str | None:
    """The same base on the same items reads the same: catches runs that keep no items."""
    first, second = (
        next((m for m in run.models if m.kind == "base"), None) for run in (one, other)
    )
    if first is None or second is None:
        return None
    for task in one.tasks:
        score, other_score = (base.score("report", task.metric) for base in (first, second))
        if score is not None and other_score is not None and not _near(score, other_score):
            return (
                f"the base reads {score:.6g} and {other_score:.6g} on held-out {task.metric}, so "
                "that either the base or the items are others"
            )
    return None


def _near(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=_NEAR, abs_tol=1e-9)
