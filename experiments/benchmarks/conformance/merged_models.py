"""Merges beside the same arithmetic in a few lines, on what transformers loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from experiments.benchmarks.conformance.tiny_models import EXPERTS, Saved, tensors
from experiments.commands.merge_models import static_plan
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeMethod
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.plan import MergePlan
from merging.saving.save import save_model

WEIGHTS = {"a": 0.5, "b": -0.25}  # powers of two: no product is rounded, so no sign is in doubt
DENSITY = 0.4
KNOBS: Mapping[str, Mapping[str, Any]] = {
    "task_arithmetic": {"weight": WEIGHTS, "scale": 1.0},
    "ties": {"weight": WEIGHTS, "scale": 1.0, "density": DENSITY},
}
METHODS: Mapping[str, MergeMethod] = {"task_arithmetic": TaskArithmetic(), "ties": Ties()}
_NEAR = 8 * torch.finfo(torch.float32).eps


def plan_of(method: str, pool: ExpertPool) -> MergePlan:
    """Returns one of the `METHODS` with its `KNOBS`."""
    return static_plan(METHODS[method], Whole(), pool, KNOBS[method])


def check(saved: Saved, pool: ExpertPool) -> list[str]:
    """Returns what is wrong with the merges of a base and its experts; nothing where all is right.

    Leaves the merged models beside the experts, under the methods' names.
    """
    wrong = []
    models = {name: saved.load(name) for name in ("base", *EXPERTS)}
    states = {name: model.state_dict() for name, model in models.items()}
    for method in METHODS:
        out = saved.folder / method
        save_model(pool, plan_of(method, pool).weights(pool), out)
        wanted = expected(method, states, WEIGHTS)
        found = saved.load(method)
        wrong += [f"{method}: {fault}" for fault in faults(found, models["base"], wanted, states)]
        wrong += [f"{method}: {fault}" for fault in file_faults(saved.folder / "base", out)]
        swapped = expected(method, states, dict(zip(EXPERTS, (-0.25, 0.5), strict=True)))
        if not faults(found, models["base"], swapped, states):
            wrong.append(f"{method}: a wrong merge passes")
    return wrong


def expected(
    method: str, states: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """Returns every tensor of a state dict merged in float64."""
    base = states["base"]
    return {
        name: _merged(method, tensor, [states[e][name] for e in EXPERTS], list(weights.values()))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in base.items()
    }


def _merged(method: str, base: Tensor, experts: list[Tensor], weights: list[float]) -> Tensor:
    deltas = [expert.double() - base.double() for expert in experts]
    if method == "ties":
        return base.double() + ties(deltas, weights, DENSITY)
    return base.double() + sum(w * d for w, d in zip(weights, deltas, strict=True))


def ties(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """Trims, elects and averages; Yadav et al. 2023, algorithm 1."""
    kept = []
    for delta in deltas:
        size = delta.float().abs().flatten()
        count = max(1, round(density * len(size))) if len(size) else 0
        cut = size.sort(descending=True).values[count - 1] if count else 0
        kept.append(torch.where(size.view(delta.shape) >= cut, delta, 0))
    weighted = torch.stack([w * d for w, d in zip(weights, kept, strict=True)])
    elected = weighted.sum(dim=0).sign()
    agrees = (weighted.sign() == elected) & (weighted != 0)
    shape = (-1, *[1] * (weighted.dim() - 1))
    total = (torch.tensor(weights).double().abs().view(shape) * agrees).sum(dim=0)
    return (weighted * agrees).sum(dim=0) / total.where(total > 0, 1)


def faults(
    found: Any,
    base: Any,
    wanted: Mapping[str, Tensor],
    states: Mapping[str, Mapping[str, Tensor]],
) -> list[str]:
    """Returns in what a merged model that transformers loaded is not what it should be."""
    have = tensors(found)
    wrong = [f"{name} is missing" for name in wanted if name not in have]
    wrong += [f"{name} is new" for name in have.keys() - tensors(base).keys()]
    for name, tensor in wanted.items():
        if name in have and not _equal(have[name], tensor, [s[name] for s in states.values()]):
            wrong.append(f"{name} is off")
    computed = tensors(base).keys() - wanted.keys()
    for name in computed & have.keys():
        if not torch.equal(have[name], tensors(base)[name]):
            wrong.append(f"the computed {name} is off")
    if _tied(found) != _tied(base):
        wrong.append("other tensors are tied")
    return wrong


def _equal(found: Tensor, wanted: Tensor, inputs: list[Tensor]) -> bool:
    if not found.is_floating_point():
        return torch.equal(found, wanted)
    room = _NEAR * sum(tensor.double().abs() for tensor in inputs)
    return found.shape == wanted.shape and bool(((found.double() - wanted).abs() <= room).all())


def _tied(model: Any) -> set[frozenset[str]]:
    """Returns which names are one tensor."""
    places: dict[Any, set[str]] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            places.setdefault((tensor.data_ptr(), tensor.shape), set()).add(name)
    return {frozenset(names) for names in places.values() if len(names) > 1}


def file_faults(base: Path, merged: Path) -> list[str]:
    """Returns which tensors of the base's file the merged file lacks, adds or holds otherwise."""
    old, new = _listed(base), _listed(merged)
    wrong = [f"{name} is not in the file" for name in old if name not in new]
    wrong += [f"{name} is new in the file" for name in new if name not in old]
    wrong += [
        f"{name} is {new[name]} in the file, {old[name]} in the base's"
        for name in old
        if name in new and new[name] != old[name]
    ]
    return wrong


def _listed(folder: Path) -> dict[str, tuple[Any, ...]]:
    listed: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                listed[name] = (part.get_dtype(), tuple(part.get_shape()))
    return listed
