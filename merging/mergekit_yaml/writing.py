"""A recipe of coefficients or of stacked layers as a mergekit file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from merging.checkpoints.adapters import Adapter
from merging.checkpoints.experts import ExpertPool
from merging.mergekit_yaml.passthrough import write_slices
from merging.mergekit_yaml.spelling import METHODS, PASSTHROUGH, MergekitError, Spelling
from merging.method import MergeMethod
from merging.plan import MergePlan
from merging.recipe import Recipe, dtype_name
from merging.stacks.layer_stack import BASE, LayerStackPlan
from merging.zoo.store import SOURCE


def to_mergekit(recipe: Recipe, pool: ExpertPool) -> str:
    """Returns a recipe as mergekit YAML; raises MergekitError for what that cannot express.

    Random methods draw other noise there, and of equal magnitudes at a cut it keeps some by their
    place, where here all stay.
    """
    plan = recipe.plan
    _refuse_zoo(pool)
    if isinstance(plan, LayerStackPlan):
        document = _stack(plan, pool)
    elif isinstance(plan, MergePlan):
        document = _merge(plan, pool)
    else:
        raise MergekitError(
            f"mergekit has nothing for {plan.name!r}: keep the recipe, or save the model"
        )
    tokens = {} if pool.vocabulary is None else {"tokenizer_source": pool.vocabulary[0]}
    text: str = yaml.safe_dump(document | tokens | _dtypes(recipe, pool), sort_keys=False)
    return text


def _stack(plan: LayerStackPlan, pool: ExpertPool) -> dict[str, Any]:
    models = {BASE: pool.base.source, **{e: _model(pool, e) for e in pool.expert_names}}
    return {
        "merge_method": PASSTHROUGH,
        "base_model": pool.base.source,
        "slices": write_slices(plan, pool, models),
    }


def _merge(plan: MergePlan, pool: ExpertPool) -> dict[str, Any]:
    name, spelling = _spelling(plan.method)
    _refuse_inexpressible(plan, spelling, name)
    models = {expert: _model(pool, expert) for expert in plan.experts}
    groups = _file_groups(plan, pool)
    own: dict[str, dict[str, Any]] = {expert: {} for expert in plan.experts}
    shared: dict[str, Any] = {}
    for theirs, ours in spelling.per_model.items():
        for expert in plan.experts:
            values = {g: _of(plan, g, ours, expert) for g in plan.coefficients}
            own[expert][theirs] = _filters(groups, values)
    for theirs, ours in spelling.shared.items():
        read = _slerp_t if name == "slerp" else _shared
        shared[theirs] = _filters(groups, {g: read(plan, g, ours) for g in plan.coefficients})
    document: dict[str, Any] = {"merge_method": name}
    if base := _base_model(plan, spelling, pool, models):
        document["base_model"] = base
    document["models"] = [
        {"model": models[expert], **({"parameters": own[expert]} if own[expert] else {})}
        for expert in plan.experts
    ]
    if shared := {**shared, **_options(plan.method, spelling)}:
        document["parameters"] = shared
    return document


def _refuse_zoo(pool: ExpertPool) -> None:
    for source in (pool.base.source, *pool.sources.values()):
        if source.startswith(SOURCE):
            raise MergekitError(
                f"mergekit does not read {source}: export it, then name it by --source NAME=PATH"
            )


def _spelling(method: MergeMethod) -> tuple[str, Spelling]:
    for name, spelling in METHODS.items():
        fits = all(getattr(method, field, None) == v for field, v in spelling.fixed.items())
        if fits and spelling.cls is type(method):
            return name, spelling
    raise MergekitError(
        f"mergekit has no method for {type(method).__name__}: keep the recipe as it is"
    )


def _refuse_inexpressible(plan: MergePlan, spelling: Spelling, name: str) -> None:
    """Raises for options and knobs that mergekit would replace by its own value."""
    known = {option.field for option in spelling.options.values()} | {"seed", *spelling.fixed}
    known |= {"task_vectors"} if spelling.base == "optional" else set()
    for field in dataclasses.fields(plan.method):  # type: ignore[arg-type]
        value = getattr(plan.method, field.name)
        if field.name not in known and value != field.default:
            raise MergekitError(
                f"mergekit's {name} has no {field.name}={value!r}: keep the recipe as it is"
            )
    spelt = {*spelling.per_model.values(), *spelling.shared.values()}
    for group, knobs in plan.coefficients.items():
        for knob in plan.method.knobs:
            if knob.name in spelt:
                continue
            given = knobs[knob.name]
            values = set(given.values()) if isinstance(given, Mapping) else {given}
            if len(values) > 1 or (not knob.per_expert and values != {1.0}):
                raise MergekitError(
                    f"mergekit's {name} has no {knob.name}, group {group!r} has it at "
                    f"{', '.join(map(str, sorted(values)))}: keep the recipe as it is"
                )


def _model(pool: ExpertPool, expert: str) -> str:
    """Returns mergekit's name of an expert; an adapter stands behind its base."""
    source = pool.sources[expert]
    is_adapter = isinstance(pool.experts[expert], Adapter)
    return f"{pool.base.source}+{source}" if is_adapter else source


def _base_model(
    plan: MergePlan, spelling: Spelling, pool: ExpertPool, models: Mapping[str, str]
) -> str | None:
    if spelling.base == "member":
        return None
    if spelling.base == "first":
        return models[plan.experts[0]]
    if not getattr(plan.method, "task_vectors", True):
        return None
    return pool.base.source


def _options(method: MergeMethod, spelling: Spelling) -> dict[str, Any]:
    options = {
        theirs: getattr(method, option.field)
        for theirs, option in spelling.options.items()
        if option.field is not None
    }
    if options.get("nuslerp_flatten") is False:  # see `merging.mergekit_yaml.reading`
        options["nuslerp_row_wise"] = not options["nuslerp_row_wise"]
    return options


def _dtypes(recipe: Recipe, pool: ExpertPool) -> dict[str, str]:
    """Returns float32 for the arithmetic and the recipe's dtype for the result.

    Where the base mixes dtypes and the recipe keeps them, mergekit can only be told nothing.
    """
    saved = recipe.dtype
    if saved is None:
        dtypes = {pool.base.dtype(name) for name in pool.names}
        saved = dtype_name(dtypes.pop()) if len(dtypes) == 1 else None
    return {} if saved is None else {"dtype": "float32", "out_dtype": saved}


def _of(plan: MergePlan, group: str, knob: str, expert: str) -> float:
    value = plan.coefficients[group][knob]
    return value[expert] if isinstance(value, Mapping) else value


def _shared(plan: MergePlan, group: str, knob: str) -> float:
    value = plan.coefficients[group][knob]
    assert not isinstance(value, Mapping)
    return value


def _slerp_t(plan: MergePlan, group: str, knob: str) -> float:
    first, second = (_of(plan, group, knob, expert) for expert in plan.experts)
    if first + second == 0:
        raise MergekitError(f"group {group!r}: weights that sum to zero have no t")
    return second / (first + second)


def _file_groups(plan: MergePlan, pool: ExpertPool) -> dict[str, str]:
    """Returns name in the base's file -> group, longer names first.

    The first filter that is a part of the name counts: ``norm.weight`` must come behind
    ``q_norm.weight``.
    """
    names = pool.base.file_names or {}
    groups = {names.get(n, n): group for n, group in plan.grouping.assign(pool.names).items()}
    return dict(sorted(groups.items(), key=lambda item: len(item[0]), reverse=True))


def _filters(groups: Mapping[str, str], values: Mapping[str, float]) -> Any:
    """Returns one number where all groups agree, else mergekit's list of filters."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return [{"filter": name, "value": values[group]} for name, group in groups.items()]
