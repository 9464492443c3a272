"""Reads plans of every kind back from their descriptions."""

from collections.abc import Mapping
from typing import Any

from merging.lineages.replay import LineagePlan
from merging.lora.factors import FactorPlan
from merging.paths.path import PathPlan
from merging.plan import MergePlan, Plan
from merging.spaces.around import AroundPlan
from merging.spaces.displaced import DisplacedPlan
from merging.stacks.layer_stack import LayerStackPlan


def plan_from_description(description: Mapping[str, Any]) -> Plan:
    """Returns what any plan's `describe` wrote; raises ValueError, naming a wrong kind or key."""
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
    if kind == "lineage":
        own = None if description.get("start") is None else _part(description, "start")
        return LineagePlan.from_description(description, own)
    if kind == "layer_stack":
        merged = description.get("merged_source")
        return LayerStackPlan.from_description(
            description, None if merged is None else _part(description, "merged_source")
        )
    if kind == "displaced":
        return DisplacedPlan(*(_part(description, key) for key in ("start", "here", "there")))
    if kind == "around":
        return AroundPlan.from_description(description, _part(description, "start"))
    if kind == "factors":
        return FactorPlan(_part(description, "factors"))
    raise ValueError(
        f"recipe: kind {kind!r} is unknown: rebuild it with the version of evomerge that wrote it"
    )


def _part(description: Mapping[str, Any], key: str) -> Plan:
    if not isinstance(description.get(key), Mapping):
        raise ValueError(f"recipe: {key!r} must be a plan, got {description.get(key)!r}")
    return plan_from_description(description[key])
