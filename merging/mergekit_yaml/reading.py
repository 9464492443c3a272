"""A mergekit file as a merge plan.

Parameter values follow mergekit's rules: a number; a list, interpolated over the layers; or a
list of ``{filter, value}`` whose filter is a part of the tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from merging.experts import ExpertPool
from merging.grouping import Grouping, PerTensor, Whole, layer_of
from merging.mergekit_yaml.spelling import METHODS, MergekitError, Spelling
from merging.method import MergeMethod
from merging.methods.slerp import Slerp
from merging.plan import MergePlan
from merging.recipe import parse_dtype


@dataclass(frozen=True)
class MergekitJob:
    """A mergekit file, ready to run: the pool, what to do with it, and the saved dtype."""

    pool: ExpertPool
    plan: MergePlan
    dtype: torch.dtype | None


def from_mergekit(path: Path, *, trust_remote_code: bool = False) -> MergekitJob:
    """Returns the merge that a mergekit YAML file describes.

    Raises:
        MergekitError: not such a file, or it asks for what cannot be done here; names the key.
        CheckpointError: a model cannot be opened.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MergekitError(f"mergekit={path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise MergekitError(f"mergekit={path}: not YAML: {error}") from None
    try:
        return _read(content, trust_remote_code)
    except MergekitError as error:
        raise MergekitError(f"mergekit={path}: {error}") from None


def _read(content: Any, trust_remote_code: bool) -> MergekitJob:
    if not isinstance(content, dict) or "merge_method" not in content:
        raise MergekitError("there is no merge_method: this is no mergekit merge")
    _refuse_keys(content)
    name = content["merge_method"]
    if name not in METHODS:
        raise MergekitError(
            f"merge_method {name!r} is not supported: expected one of {', '.join(METHODS)}"
        )
    spelling = METHODS[name]
    entries = _entries(content)
    base = content.get("base_model")
    if base is None and spelling.base == "model" and name != "nuslerp":
        raise MergekitError(f"merge_method {name} needs a base_model")
    entries, origin = _place_base(entries, base, spelling, name)
    names = _expert_names([model for model, _ in entries])
    pool = ExpertPool.open(
        origin,
        dict(zip(names, [model for model, _ in entries], strict=True)),
        trust_remote_code=trust_remote_code,
    )
    shared = content.get("parameters") or {}
    method = _method(name, spelling, shared, base)
    values = {
        tensor: _knob_values(name, spelling, method, names, entries, shared, tensor, where)
        for tensor, where in _depths(pool.names).items()
    }
    first = next(iter(values.values()))
    grouping: Grouping = PerTensor()
    if all(value == first for value in values.values()):
        grouping, values = Whole(), {"model": first}
    dtype = content.get("out_dtype") or content.get("dtype")
    plan = MergePlan(method, grouping, pool.expert_names, values)
    return MergekitJob(pool, plan, None if dtype is None else parse_dtype(dtype))


def _refuse_keys(content: Mapping[str, Any]) -> None:
    known = {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}
    for key, value in content.items():
        harmless = key == "name" or value is None or (key, value) == ("tokenizer_source", "base")
        if key not in known and not harmless:
            raise MergekitError(f"{key}: {value} is not supported: remove the key")


def _entries(content: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns every model with its own parameters, from ``models`` or one whole slice."""
    listed = content.get("models")
    if listed is None:
        slices = content.get("slices") or []
        if len(slices) != 1:
            raise MergekitError(
                "slices: layers are not re-ordered here: give models, or one slice"
            )
        listed = slices[0].get("sources", [])
    if not listed or not all(
        isinstance(e, dict) and isinstance(e.get("model"), str) for e in listed
    ):
        raise MergekitError("models: expected a list of {model: ID or directory, parameters: ...}")
    for entry in listed:
        span = entry.get("layer_range")
        if span is not None and span[0] != 0:
            raise MergekitError("slices: a layer_range must cover the whole model")
    return [(entry["model"], entry.get("parameters") or {}) for entry in listed]


def _place_base(
    entries: list[tuple[str, Mapping[str, Any]]], base: str | None, spelling: Spelling, name: str
) -> tuple[list[tuple[str, Mapping[str, Any]]], str]:
    """Returns the experts, and the model that task vectors start from."""
    others = [entry for entry in entries if entry[0] != base]
    if spelling.base == "expert":
        if base is None or len(others) != 1:
            raise MergekitError(f"merge_method {name} needs a base_model and one other model")
        return [(base, {}), *others], base
    if base is not None and (spelling.base == "model" or name in ("multislerp", "karcher")):
        entries = others
    if not entries:
        raise MergekitError("models: there is none beside the base_model")
    return entries, base if base is not None else entries[0][0]


def _expert_names(models: Sequence[str]) -> list[str]:
    """Returns a short name for every model: the last part of its path, numbered if needed."""
    names: list[str] = []
    for model in models:
        name = model.rstrip("/").rsplit("/", 1)[-1]
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _method(
    name: str, spelling: Spelling, shared: Mapping[str, Any], base: str | None
) -> MergeMethod:
    known = {*spelling.params, "normalize", "rescale", "t", "weight", "int8_mask"}
    known |= {"nuslerp_flatten", "nuslerp_row_wise", "max_iter", "tol"}
    if unknown := sorted(set(shared) - known):
        raise MergekitError(f"parameters: {unknown[0]} is not supported with {name}: remove it")
    options: dict[str, Any] = {}
    if spelling.normalize is not None:
        options["normalize"] = bool(shared.get("normalize", spelling.normalize))
    if "rescale" in shared and name.startswith(("dare", "della")):
        options["rescale"] = bool(shared["rescale"])
    if name in ("multislerp", "karcher"):
        options["task_vectors"] = base is not None
    if name == "karcher":
        options["max_iterations"] = int(shared.get("max_iter", 10))
        options["tolerance"] = float(shared.get("tol", 1e-5))
    if name == "nuslerp":
        if base is None:
            return Slerp()
        options["flatten"] = bool(shared.get("nuslerp_flatten", True))
        options["row_wise"] = bool(shared.get("nuslerp_row_wise", False))
    method: MergeMethod = spelling.cls(**options)
    return method


def _knob_values(
    name: str,
    spelling: Spelling,
    method: MergeMethod,
    names: Sequence[str],
    entries: Sequence[tuple[str, Mapping[str, Any]]],
    shared: Mapping[str, Any],
    tensor: str,
    depth: float,
) -> dict[str, Mapping[str, float] | float]:
    """Returns our knobs for one tensor."""
    if name == "slerp":
        t = _value("t", entries[1][1].get("t", shared.get("t")), tensor, depth)
        return {"weight": dict(zip(names, (1 - t, t), strict=True))}
    spelt = {ours: theirs for theirs, ours in spelling.params.items()}
    values: dict[str, Mapping[str, float] | float] = {}
    for knob in method.knobs:
        theirs = spelt.get(knob.name)
        default = spelling.defaults.get(theirs or knob.name, knob.start)
        if theirs is None:
            values[knob.name] = dict.fromkeys(names, default) if knob.per_expert else default
        elif knob.per_expert:
            given = [
                parameters.get(theirs, shared.get(theirs, default)) for _, parameters in entries
            ]
            values[knob.name] = {
                expert: _value(theirs, value, tensor, depth)
                for expert, value in zip(names, given, strict=True)
            }
        else:
            own = [parameters[theirs] for _, parameters in entries if theirs in parameters]
            values[knob.name] = _value(
                theirs, own[0] if own else shared.get(theirs, default), tensor, depth
            )
    return values


def _value(parameter: str, given: Any, tensor: str, depth: float) -> float:
    """Returns mergekit's reading of a parameter for one tensor at a depth in [0, 1]."""
    if isinstance(given, bool) or given is None:
        raise MergekitError(f"parameters: {parameter} needs a number, got {given}")
    if isinstance(given, (int, float)):
        return float(given)
    if isinstance(given, list) and all(isinstance(each, dict) for each in given):
        for each in given:
            part = each.get("filter")
            if part in (None, "*") or str(part) in tensor:
                return _value(parameter, each.get("value"), tensor, depth)
        raise MergekitError(
            f"parameters: {parameter} has no value for {tensor}: add one without filter"
        )
    if isinstance(given, list) and given:
        place = depth * (len(given) - 1)
        low = min(int(place), len(given) - 1)
        high = min(low + 1, len(given) - 1)
        share = place - low
        return float(given[low]) * (1 - share) + float(given[high]) * share
    raise MergekitError(f"parameters: {parameter}: {given!r} is no number, list or filter list")


def _depths(names: Sequence[str]) -> dict[str, float]:
    """Returns every tensor's depth: 0 before the layers, 1 behind them, linear between."""
    layers = [layer_of(name) for name in names]
    count = max((layer[1] for layer in layers if layer), default=0)
    depths: dict[str, float] = {}
    seen = False
    for name, layer in zip(names, layers, strict=True):
        seen = seen or layer is not None
        depths[name] = (layer[1] / count if count else 0.0) if layer else float(seen)
    return depths
