"""A coefficient recipe as a mergekit file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from merging.experts import ExpertPool
from merging.mergekit_yaml.spelling import METHODS, MergekitError
from merging.recipe import Recipe


def to_mergekit(recipe: Recipe, pool: ExpertPool) -> str:
    """Returns a coefficient recipe as mergekit YAML; random methods draw other noise there.

    Raises:
        MergekitError: mergekit has no such method or knob.
    """
    plan = recipe.plan
    name = next((n for n, m in METHODS.items() if m.cls is type(plan.method)), None)
    if name is None:
        raise MergekitError(
            f"mergekit has no method for {type(plan.method).__name__}: keep the recipe as it is"
        )
    spelling = METHODS[name]
    groups = plan.grouping.assign(pool.names)
    parameters: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {expert: {} for expert in plan.experts}
    if name == "slerp":
        parameters["t"] = _spread(groups, {g: _slerp_t(k) for g, k in plan.coefficients.items()})
    for theirs, ours in spelling.params.items():
        for expert in plan.experts:
            column = {group: knobs[ours] for group, knobs in plan.coefficients.items()}
            values = {g: v[expert] if isinstance(v, Mapping) else v for g, v in column.items()}
            target = (
                own[expert] if isinstance(next(iter(column.values())), Mapping) else parameters
            )
            target[theirs] = _spread(groups, values)
    for option in ("normalize", "rescale"):
        if hasattr(plan.method, option):
            parameters[option] = getattr(plan.method, option)
    models: list[dict[str, Any]] = [
        {
            "model": recipe.experts[expert].source,
            **({"parameters": own[expert]} if own[expert] else {}),
        }
        for expert in plan.experts
    ]
    base = recipe.experts[plan.experts[0]].source if name == "slerp" else recipe.base.source
    document: dict[str, Any] = {"merge_method": name, "models": models}
    if spelling.base != "none":
        document["base_model"] = base
    document |= {"parameters": parameters, "dtype": recipe.dtype or "float32"}
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def _slerp_t(knobs: Mapping[str, Mapping[str, float] | float]) -> float:
    weights = knobs["weight"]
    assert isinstance(weights, Mapping)
    first, second = weights.values()
    return float(second / (first + second))


def _spread(groups: Mapping[str, str], values: Mapping[str, float]) -> Any:
    """Returns one number where all groups agree, else mergekit's list of filters."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return [{"filter": tensor, "value": values[group]} for tensor, group in groups.items()]
