"""mergekit's passthrough, slices of models' layers one after the other, as a layer stack and back.

mergekit takes what lies before the layers from the first slice's model, and what lies behind them
from the last one's; a slice without layers, ``[0, 0]``, names a model for these alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.mergekit_yaml.models import (
    ModelReference,
    names_of,
    origin_of,
    refuse_keys,
    settings_of,
)
from merging.mergekit_yaml.parameters import Settings, TensorPosition, check_words, resolve
from merging.mergekit_yaml.spelling import PASSTHROUGH, SCALES, MergekitError
from merging.stacks.layer_stack import BASE, MERGED, LayerStackPlan, StackedLayer
from merging.stacks.layers import LayerMap


@dataclass(frozen=True)
class Slice:
    """Layers of one model.

    Args:
        span: first layer, and the one behind the last; None: all of them.
        scopes: parameters of the source, the slice and the file.
    """

    model: ModelReference
    span: tuple[int, int] | None
    scopes: tuple[Settings, ...]


@dataclass(frozen=True)
class Stack:
    """A passthrough file.

    Args:
        origin: the model whose configuration and tokenizer the result has.
        experts: name to source of the others; the origin itself where there is no other.
        sources: how a layer stack calls every model.
    """

    origin: str
    experts: Mapping[str, str]
    sources: Mapping[ModelReference, str]
    slices: tuple[Slice, ...]

    def plan(self, base: Checkpoint) -> LayerStackPlan:
        """Returns the layer stack over the opened `base`; raises MergekitError for no layer."""
        layers = LayerMap.of(base)
        files = base.file_names or {}
        places: list[StackedLayer] = []
        factors: dict[str, float] = {}

        def scale(piece: Slice, origin: str, name: str, depth: float) -> None:
            position = TensorPosition(files.get(origin, origin), depth)
            if (factor := resolve("scale", piece.scopes, position)) not in (None, 1.0):
                factors[name] = factor

        for piece in self.slices:
            first, stop = _span(piece, layers.count)
            for layer in range(first, stop):
                depth = (layer - first) / (stop - first - 1) if stop - first > 1 else 1.0
                for inside in layers.inside:
                    name = layers.name(len(places), inside)
                    scale(piece, layers.name(layer, inside), name, depth)
                places.append(StackedLayer(layer, self.sources[piece.model]))
        behind = layers.behind(base)
        for name in base:
            if not layers.holds(name):
                scale(self.slices[-1 if name in behind else 0], name, name, 0.0)
        before, last = (self.sources[self.slices[i].model] for i in (0, -1))
        return LayerStackPlan(tuple(places), before, None, last, factors)


def read_stack(content: Mapping[str, Any]) -> Stack:
    """Returns what a passthrough file describes, before a model is opened.

    Raises:
        MergekitError: a key or value that mergekit or a layer stack cannot take; names it.
    """
    slices, base = tuple(_slices(content)), content.get("base_model")
    if base is not None and not isinstance(base, str):
        raise MergekitError(f"base_model: {base} is no model: name an id or a directory")
    models = list(dict.fromkeys(piece.model for piece in slices))
    origin = ModelReference(origin_of(None if base is None else ModelReference(base), models))
    others = [model for model in models if model != origin] or [origin]
    names = dict(zip(others, names_of(others, (BASE, MERGED)), strict=True))
    experts = {name: model.source for model, name in names.items()}
    return Stack(origin.text, experts, {origin: BASE, **names}, slices)


def write_slices(plan: LayerStackPlan, pool: ExpertPool, models: Mapping[str, str]) -> list[Any]:
    """Returns mergekit's ``slices`` of a layer stack.

    Args:
        models: mergekit's name of every source.

    Raises:
        MergekitError: layers of a merge, or a scaled norm that adds to its weight.
    """
    if MERGED in plan.sources:
        raise MergekitError(
            "mergekit's passthrough takes layers of models, not of a merge: save that merge, or "
            "keep the recipe as it is"
        )
    layers = LayerMap.of(pool.base)
    runs: list[list[int]] = [[]]
    for i, place in enumerate(plan.places):
        before = plan.places[i - 1] if i else place
        if i and (place.source, place.layer) != (before.source, before.layer + 1):
            runs.append([])
        runs[-1].append(i)
    behind = plan.behind or plan.outer
    slices = [_slice(models[plan.places[run[0]].source], plan, layers, pool, run) for run in runs]
    if plan.outer != plan.places[0].source:
        slices.insert(0, _slice(models[plan.outer], plan, layers, pool, []))
    if behind != plan.places[-1].source:
        slices.append(_slice(models[behind], plan, layers, pool, []))
    last = layers.behind(pool.base)
    for name, factor in plan.factors.items():
        if not layers.holds(name):
            _add_scale(slices[-1 if name in last else 0], {name: factor}, pool)
    return slices


def _slice(
    model: str, plan: LayerStackPlan, layers: LayerMap, pool: ExpertPool, run: Sequence[int]
) -> dict[str, Any]:
    """Returns the slice of consecutive layers that stand at the places `run`."""
    first = plan.places[run[0]].layer if run else 0
    written = {"sources": [{"model": model, "layer_range": [first, first + len(run)]}]}
    factors = {}
    for i in run:
        place = plan.places[i]
        for inside in layers.inside:
            factor = plan.factors.get(layers.name(i, inside), 1.0)
            added = layers.added(inside)
            if place.scale != 1 and added:
                raise MergekitError(
                    f"place {i}: mergekit multiplies weights, and no factor of {inside} scales "
                    f"what the layer adds by {place.scale}: keep the recipe as it is"
                )
            if added is not None:
                factor *= place.scale
            factors[layers.name(place.layer, inside)] = factor
    _add_scale(written, factors, pool)
    return written


def _add_scale(written: dict[str, Any], factors: Mapping[str, float], pool: ExpertPool) -> None:
    """Adds factors to a slice by the whole name in the file, longer names first."""
    files = pool.base.file_names or {}
    scales = written.get("parameters", {}).get("scale", [])
    scales += [
        {"filter": files.get(name, name), "value": factor}
        for name, factor in factors.items()
        if factor != 1
    ]
    if scales:
        scales.sort(key=lambda entry: -len(entry["filter"]))
        written["parameters"] = {"scale": scales}


def _slices(content: Mapping[str, Any]) -> list[Slice]:
    """Returns the slices of a file, or its one model as one of all layers."""
    models, listed = content.get("models"), content.get("slices")
    if (models is None) == (listed is None):
        raise MergekitError("expected one of models and slices, got both or none")
    known = {"model", "parameters"} if listed is None else {"model", "parameters", "layer_range"}
    where = "models" if listed is None else "slices"
    given = [{"sources": models}] if listed is None else listed
    if not isinstance(given, list) or not given:
        raise MergekitError("slices: expected a list of {sources: [{model, layer_range}]}")
    shared = settings_of(content, "parameters")
    check_words(shared, SCALES, PASSTHROUGH, "parameters")
    return [_read_slice(piece, known, where, shared) for piece in given]


def _read_slice(piece: Any, known: set[str], where: str, shared: Settings) -> Slice:
    sources = piece.get("sources") if isinstance(piece, dict) else None
    if not isinstance(sources, list) or not sources or not isinstance(sources[0], dict):
        raise MergekitError(f"{where}: {piece} is no {{sources: [{{model, layer_range}}]}}")
    refuse_keys(piece, {"sources", "parameters"}, where)
    if len(sources) > 1:
        raise MergekitError(
            f"{where}: passthrough takes one model at a time, got {len(sources)}: name one, or "
            "merge them by another merge_method"
        )
    source = sources[0]
    refuse_keys(source, known, where)
    if not isinstance(source.get("model"), str):
        raise MergekitError(f"{where}: {source} is no {{model: ID or directory, ...}}")
    scopes = (
        settings_of(source, f"parameters of {source['model']}"),
        settings_of(piece, "parameters of the slice"),
        shared,
    )
    for settings in scopes:
        check_words(settings, SCALES, PASSTHROUGH, "parameters")
    span = source.get("layer_range")
    if "layer_range" in known:
        if not (isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)):
            raise MergekitError(f"{where}: layer_range {span} is no [first layer, layer behind]")
        span = (span[0], span[1])
    return Slice(ModelReference(source["model"]), span, scopes)


def _span(piece: Slice, count: int) -> tuple[int, int]:
    first, stop = piece.span or (0, count)
    if not 0 <= first <= stop <= count:
        raise MergekitError(
            f"slices: layer_range {[first, stop]} does not lie in {piece.model.text}, which has "
            f"{count} layers"
        )
    return first, stop
