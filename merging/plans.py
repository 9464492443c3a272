"""Reads plans of every kind back from their descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merging.path import PathPlan
from merging.plan import MergePlan, Plan


def plan_from_description(description: Mapping[str, Any]) -> Plan:
    """Returns the plan that any plan's `describe` wrote.

    Raises:
        ValueError: an unknown kind, a missing key, or a value that makes no sense; names it.
    """
    kind = description.get("kind", "coefficients")
    if kind == "coefficients":
        return MergePlan.from_description(description)
    if kind == "path":
        start = description.get("start")
        if start is not None and not isinstance(start, Mapping):
            raise ValueError(f"recipe: 'start' must be a plan or null, got {start!r}")
        return PathPlan.from_description(
            description, None if start is None else plan_from_description(start)
        )
    raise ValueError(f"recipe: kind {kind!r} is unknown, expected coefficients or path")
