"""A merge plan: method, grouping and coefficients; with a pool of experts it becomes weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from merging import described
from merging import grouping as groupings
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping
from merging.method import Knob, MergeError, MergeMethod, Slot
from merging.rules import blocks
from merging.rules.knobs import check_names, check_values
from merging.weights import Weights

Coefficients: TypeAlias = Mapping[str, Mapping[str, "Mapping[str, float] | float"]]
"""Group to knob to value: a number per expert name, or one number for a shared knob."""


class Plan(Protocol):
    """Everything that turns a pool into one model: what a recipe holds."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> Weights:
        """Returns the model's merged parameters, computed when read; same plan, same bits."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON with its ``kind``, readable by `plan_from_description`."""
        ...

    @property
    def named_experts(self) -> frozenset[str] | None:
        """The experts that the plan names; None: it may read all of the pool."""
        ...


@dataclass(frozen=True)
class MergePlan:
    """A merge method with a value for each of its knobs.

    Args:
        method: computes each parameter.
        grouping: which parameters share coefficients.
        experts: names of the experts that take part, in the order of the pool.
        coefficients: a value for every group and every knob of the method.
    """

    method: MergeMethod
    grouping: Grouping
    experts: tuple[str, ...]
    coefficients: Coefficients

    @property
    def name(self) -> str:
        """The method's class name."""
        return type(self.method).__name__

    @property
    def named_experts(self) -> frozenset[str]:
        """The experts that take part."""
        return frozenset(self.experts)

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> Weights:
        """Returns the merged parameters, computed when read, in float32 and cast once.

        Args:
            pool: holds at least the plan's experts.
            dtype: of the result; None: each parameter's dtype in the base.

        Raises:
            MergeError: no expert takes part, or a coefficient is missing; on reading, whatever
                the method refuses.
        """
        if not self.experts:
            raise MergeError("the merge has no expert: select at least one")
        return _PlannedWeights(self, pool.select(self.experts), dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `from_description`."""
        return {
            "kind": "coefficients",
            "method": describe_method(self.method),
            "grouping": groupings.describe(self.grouping),
            "merged": list(self.experts),
            "coefficients": {
                group: {
                    knob: dict(value) if isinstance(value, Mapping) else value
                    for knob, value in knobs.items()
                }
                for group, knobs in self.coefficients.items()
            },
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> MergePlan:
        """Returns the plan that `describe` wrote.

        Raises:
            ValueError: a key is missing or its value makes no sense; names it.
        """
        kinds = {"method": dict, "grouping": dict, "merged": list, "coefficients": dict}
        for key, kind in kinds.items():
            if key not in description:
                raise ValueError(f"recipe: {key!r} is missing")
            if not isinstance(description[key], kind):
                raise ValueError(
                    f"recipe: {key!r} must be a {kind.__name__}, got {description[key]!r}"
                )
        for group, knobs in description["coefficients"].items():
            if not isinstance(knobs, dict):
                raise ValueError(f"recipe: coefficients of {group!r} must be a dict, got {knobs}")
        return cls(
            method=method_from_description(description["method"]),
            grouping=groupings.from_description(description["grouping"]),
            experts=tuple(description["merged"]),
            coefficients=description["coefficients"],
        )


def uniform_plan(method: MergeMethod, grouping: Grouping, pool: ExpertPool) -> MergePlan:
    """Returns the static merge: every knob of `method` at its start value, for every group."""
    knobs: dict[str, Mapping[str, float] | float] = {
        knob.name: dict.fromkeys(pool.expert_names, knob.start) if knob.per_expert else knob.start
        for knob in method.knobs
    }
    groups = dict.fromkeys(grouping.assign(pool.names).values())
    return MergePlan(method, grouping, pool.expert_names, dict.fromkeys(groups, knobs))


class _PlannedWeights(Mapping[str, Tensor]):
    """The plan's result over a pool; every read computes one parameter."""

    def __init__(self, plan: MergePlan, pool: ExpertPool, dtype: torch.dtype | None) -> None:
        self._plan, self._pool, self._dtype = plan, pool, dtype
        self._group = plan.grouping.assign(pool.names)
        self._knobs = {group: self._tensors(group) for group in set(self._group.values())}

    def _tensors(self, group: str) -> dict[str, Tensor]:
        """Returns every knob of a group as float32, ``(experts,)`` or ``()``, range checked."""
        if group not in self._plan.coefficients:
            raise MergeError(
                f"no coefficients for group {group!r}: the plan has them for "
                f"{', '.join(self._plan.coefficients) or 'no group'}"
            )
        method, given = self._plan.method, self._plan.coefficients[group]
        where, tensors = f"group {group!r}", {}
        check_names(method, given, where)
        for knob in method.knobs:
            values = self._values(f"{where}: knob {knob.name!r}", knob, given[knob.name])
            check_values(method, knob, values, where)
            tensor = torch.tensor(values, dtype=torch.float32)
            tensors[knob.name] = tensor if knob.per_expert else tensor[0]
        return tensors

    def _values(self, where: str, knob: Knob, value: Mapping[str, float] | float) -> list[float]:
        """Returns a knob's numbers, one per expert or one for all."""
        experts = self._plan.experts
        if not isinstance(value, Mapping):
            return [_number(where, value)] * (len(experts) if knob.per_expert else 1)
        if not knob.per_expert:
            raise MergeError(f"{where} takes one number for all experts")
        if missing := [expert for expert in experts if expert not in value]:
            raise MergeError(f"{where} has no value for {missing[0]!r}")
        return [_number(where, value[expert]) for expert in experts]

    def __getitem__(self, name: str) -> Tensor:
        base = self._pool.base_tensor(name)
        out = torch.empty(base.shape, dtype=self._dtype or base.dtype, device=base.device)
        self.write(name, out)
        return out

    def shape(self, name: str) -> torch.Size:
        """Returns a parameter's shape without computing it."""
        return self._pool.base_tensor(name).shape

    def write(self, name: str, out: Tensor) -> None:
        """Writes what reading `name` would give into `out`, ``(*shape)`` of any dtype."""
        base = self._pool.base_tensor(name)
        dtype = self._dtype or base.dtype
        if not (out.is_contiguous() and out.dtype == dtype and out.device == base.device):
            out.copy_(self[name])
            return
        method, knobs = self._plan.method, self._knobs[self._group[name]]
        if blocks.merges_by_rule(method):
            tensors = self._pool.tensors(name)
            blocks.write(method.rule(tensors, knobs), tensors, out)
            return
        merged = method.merge(
            Slot(name, self._pool.identities),
            base.float(),
            self._pool.deltas(name),
            {knob: value.to(base.device) for knob, value in knobs.items()},
        )
        out.copy_(merged)

    def __contains__(self, name: object) -> bool:
        return name in self._group

    def __iter__(self) -> Iterator[str]:
        return iter(self._pool.names)

    def __len__(self) -> int:
        return len(self._pool.names)


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MergeError(f"{where} needs a number, got {value!r}")
    return float(value)


def describe_method(method: MergeMethod) -> dict[str, Any]:
    """Returns import path and options of a method, as Hydra would name it."""
    return described.describe(method)


def method_from_description(description: Mapping[str, Any]) -> MergeMethod:
    """Returns the method that `describe_method` wrote; nothing else is ever called by its name.

    Raises:
        ValueError: the path does not lead to a merge method, or an option is wrong.
    """
    method: MergeMethod = described.rebuild(description, "merge method", ("merge", "knobs"))
    return method
