"""A mergekit file as a merge plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping, PerTensor, Whole
from merging.mergekit_yaml.models import MergekitInput, MergekitSources, listed, merged_models
from merging.mergekit_yaml.parameters import (
    Settings,
    TensorPosition,
    check_model_words,
    check_words,
    layer_counts,
    number,
    positions,
    resolve,
)
from merging.mergekit_yaml.passthrough import read_stack
from merging.mergekit_yaml.spelling import METHODS, PASSTHROUGH, MergekitError, Spelling
from merging.method import MergeMethod
from merging.methods.slerp import Slerp
from merging.plan import MergePlan, Plan
from merging.recipe import parse_dtype

_KEYS = {
    *("base_model", "dtype", "merge_method", "models", "name", "out_dtype", "parameters"),
    *("slices", "tokenizer", "tokenizer_source"),
}
_VOCABULARIES = ("union", "base")


@dataclass(frozen=True)
class MergekitJob:
    """A mergekit file, ready to run: the pool, what to do with it, and the saved dtype."""

    pool: ExpertPool
    plan: Plan
    dtype: torch.dtype | None


def from_mergekit(
    path: Path,
    *,
    trust_remote_code: bool = False,
    before_opening: Callable[[Sequence[str]], None] = lambda sources: None,
) -> MergekitJob:
    """Returns the merge that a mergekit YAML file describes.

    Sums and defaults are those of mergekit 0.1.5; all arithmetic is float32, whatever the
    file's ``dtype``, which here names the saved one only. Random methods draw other noise, and of
    equal magnitudes at a cut all stay, where mergekit keeps some by their place; the number that a
    density keeps is rounded, where mergekit rounds down.

    Args:
        before_opening: told the models' sources before they are opened.

    Raises:
        MergekitError: not such a file, or it asks for what cannot be done here; names the key.
        CheckpointError: a model cannot be opened, or they do not fit each other.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MergekitError(
            f"{path}: cannot be read ({error.strerror}): correct its path"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MergekitError(f"{path}: not YAML: {error}") from None
    try:
        return _read(content, trust_remote_code, before_opening)
    except MergekitError as error:
        raise MergekitError(f"{path}: {error}") from None


def _read(
    content: Any, trust_remote_code: bool, before_opening: Callable[[Sequence[str]], None]
) -> MergekitJob:
    if not isinstance(content, dict) or "merge_method" not in content:
        raise MergekitError("there is no merge_method: this is no mergekit merge")
    name = content["merge_method"]
    if name not in (*METHODS, PASSTHROUGH):
        known = ", ".join((*METHODS, PASSTHROUGH))
        raise MergekitError(f"merge_method {name!r} is not supported: expected one of {known}")
    _refuse_keys(content)
    dtype = _dtype(content)
    if name == PASSTHROUGH:
        stack = read_stack(content)
        before_opening([stack.origin, *stack.experts.values()])
        pool = ExpertPool.open(
            stack.origin,
            stack.experts,
            trust_remote_code=trust_remote_code,
            vocabulary=_vocabulary(content),
        )
        return MergekitJob(pool, stack.plan(pool.base), dtype)
    spelling = METHODS[name]
    sources = listed(content)
    for settings in sources.shared:
        check_words(settings, spelling, name, "parameters")
    base = content.get("base_model")
    entries, origin = merged_models(sources.entries, base, spelling, name)
    for entry in entries:
        check_model_words(entry.settings, spelling, name, entry.model.text)
    method = _method(name, spelling, sources.shared, base is not None)
    experts = {entry.name: entry.model.source for entry in entries}
    before_opening([origin, *experts.values()])
    pool = ExpertPool.open(
        origin,
        experts,
        trust_remote_code=trust_remote_code,
        vocabulary=_vocabulary(content),
    )
    position = positions(tuple(pool.base), pool.base.file_names or {})
    _check_layer_ranges(sources, layer_counts(tuple(pool.base)))
    values = {
        tensor: _knobs(name, spelling, method, entries, sources.shared, position[tensor])
        for tensor in pool.names
    }
    first = next(iter(values.values()))
    grouping: Grouping = PerTensor()
    if all(value == first for value in values.values()):
        grouping, values = Whole(), {"model": first}
    return MergekitJob(pool, MergePlan(method, grouping, pool.expert_names, values), dtype)


def _refuse_keys(content: Mapping[str, Any]) -> None:
    known = (*_VOCABULARIES, content.get("base_model"))
    for key, value in content.items():
        if value is None:
            continue
        if key not in _KEYS:
            raise MergekitError(f"{key}: {value} is not supported: remove the key")
        source = value.get("source") if isinstance(value, dict) else value
        if key.startswith("tokenizer") and (
            source not in known or (isinstance(value, dict) and len(value) > 1)
        ):
            raise MergekitError(
                f"{key}: {value} is not supported: expected union or base; remove the key if all "
                "models share a tokenizer"
            )


def _vocabulary(content: Mapping[str, Any]) -> str:
    """Returns the rule of the pool for what mergekit says of the tokenizer."""
    named = content.get("tokenizer") or content.get("tokenizer_source")
    source = named.get("source") if isinstance(named, dict) else named
    if source is None:
        return "refuse"
    return source if source in _VOCABULARIES else "base"


def _dtype(content: Mapping[str, Any]) -> torch.dtype | None:
    """Returns the dtype to save in; None: each tensor's in the base."""
    dtypes = []
    for key in ("dtype", "out_dtype"):
        if (named := content.get(key)) is not None:
            try:
                dtypes.append(parse_dtype(str(named).removeprefix("torch.")))
            except ValueError as error:
                raise MergekitError(f"{key}: {error}") from None
    return dtypes[-1] if dtypes else None


def _check_layer_ranges(sources: MergekitSources, counts: Mapping[str, int]) -> None:
    for span in sources.layer_ranges:
        if span != [0, *set(counts.values())]:
            raise MergekitError(
                f"slices: layer_range {span} is not the whole model, {sorted(counts.values())} "
                "layers: layers are not re-ordered here"
            )


def _method(
    name: str, spelling: Spelling, shared: Sequence[Settings], has_base: bool
) -> MergeMethod:
    """Returns our method with the file's options, mergekit's defaults where it gives none."""
    fields = dict(spelling.fixed)
    for theirs, option in spelling.options.items():
        value = _option(theirs, shared, option.default)
        if option.only and value != option.default:
            raise MergekitError(
                f"parameters: {theirs}: {value} is not supported with {name}: remove it"
            )
        if option.field is not None:
            fields[option.field] = value
    if name == "multislerp":
        fields["task_vectors"] = has_base
    if name == "nuslerp":
        if not has_base and not fields["flatten"]:
            raise MergekitError(
                "parameters: nuslerp_flatten: false needs a base_model here: give one"
            )
        if not has_base:
            return Slerp()
        # mergekit's row_wise transposes (out, in) first, so that it turns columns
        fields["row_wise"] = not fields["flatten"] and not fields["row_wise"]
    method: MergeMethod = spelling.cls(**fields)
    return method


def _option(name: str, shared: Sequence[Settings], default: Any) -> Any:
    """Returns a setting that is one value for all tensors, of the default's type."""
    given = next((settings[name] for settings in shared if name in settings), default)
    if isinstance(default, bool):
        if not isinstance(given, bool):
            raise MergekitError(f"parameters: {name} needs true or false, got {given!r}")
        return given
    value = number(name, given)
    if isinstance(default, int) and value != int(value):
        raise MergekitError(f"parameters: {name} needs a whole number, got {given!r}")
    return type(default)(value)


def _knobs(
    name: str,
    spelling: Spelling,
    method: MergeMethod,
    entries: Sequence[MergekitInput],
    shared: Sequence[Settings],
    position: TensorPosition,
) -> dict[str, Mapping[str, float] | float]:
    """Returns our knobs for one tensor."""

    def value(parameter: str, scopes: Sequence[Settings], owner: str) -> float:
        given = resolve(parameter, scopes, position)
        if given is None:
            given = spelling.defaults.get(parameter)
        if given is None:
            raise MergekitError(
                f"parameters: merge_method {name} needs a {parameter}{owner} at {position.name}: "
                "add one without filter"
            )
        return given

    if name == "slerp":
        t = value("t", shared, "")
        return {"weight": {entries[0].name: 1 - t, entries[1].name: t}}
    ones = dict.fromkeys((entry.name for entry in entries), 1.0)
    knobs: dict[str, Mapping[str, float] | float] = {
        knob.name: ones if knob.per_expert else 1.0 for knob in method.knobs
    }
    for theirs, ours in spelling.per_model.items():
        knobs[ours] = {
            entry.name: value(theirs, (entry.settings, *shared), f" for {entry.model.text}")
            for entry in entries
        }
    for theirs, ours in spelling.shared.items():
        knobs[ours] = value(theirs, shared, "")
    return knobs
