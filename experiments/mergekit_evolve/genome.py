"""The genome of a mergekit-evolve file: models, method, what is searched, and in which groups."""

import math
import re
from typing import Any

from experiments.mergekit_evolve.values import Entry, EvolveError, value
from merging.mergekit_yaml.models import ModelReference, names_of, origin_of
from merging.mergekit_yaml.spelling import MergekitError

KEYS = (
    *("models", "merge_method", "base_model", "tokenizer_source", "layer_granularity"),
    *("normalize", "allow_negative_weights", "filters", "smooth"),
)
_KNOBS = {  # merge_method to what mergekit-evolve searches of each model
    "linear": ["weight"],
    "task_arithmetic": ["weight"],
    "ties": ["weight", "density"],
    "dare_ties": ["weight", "density"],
    "slerp": ["weight"],
}
_NORMALIZED = ("linear", "ties", "dare_ties")  # where `normalize` is not given
_SIGMA = 1 / 6  # mergekit-evolve's --sigma0


def read_genome(genome: Entry, notes: list[str], *, random: bool) -> dict[str, Any]:
    """Returns the options of a search that are a file's ``genome``.

    Args:
        notes: gets a sentence for every key that has no counterpart.
        random: whether the search starts anywhere, not at the average.

    Raises:
        EvolveError: a key is missing, or has another value than mergekit-evolve takes.
    """
    method = value(genome, "merge_method", str, "")
    if method not in _KNOBS:
        raise EvolveError(
            f"genome.merge_method: {method!r} is none of mergekit-evolve's: expected one of "
            f"{', '.join(_KNOBS)}"
        )
    listed = value(genome, "models", list, [])
    base, experts = _models(genome, listed, method)
    if value(genome, "tokenizer_source", str, "base") not in ("base", base):
        notes.append("genome.tokenizer_source: the merged model has the base's tokenizer")
    return {
        "base": base,
        "experts": experts,
        **_method(genome, notes, method, len(experts)),
        **_space(genome, notes, method, 1 / len(listed), random=random),
        **_groups(genome, notes),
    }


def _models(genome: Entry, listed: list[str], method: str) -> tuple[str, dict[str, str]]:
    """Returns the base, and the merged models by short names."""
    if not listed:
        raise EvolveError("genome.models: expected a list of ids and directories, got none")
    named = value(genome, "base_model", str, "")
    if not named and method not in ("linear", "slerp"):
        raise EvolveError(f"genome.base_model: merge_method {method} needs one")
    try:
        models = [ModelReference(model) for model in listed]
        root = ModelReference(named) if named else None
        base = origin_of(root, models)
    except MergekitError as error:
        raise EvolveError(f"genome: {error}") from None
    merged = [model for model in models if model != root or method in ("linear", "slerp")]
    if len(merged) < (2 if method == "slerp" else 1):
        raise EvolveError(f"genome.models: too few for {method}: name another one")
    names = map(simple, names_of(merged))
    return base, {name: model.source for name, model in zip(names, merged, strict=True)}


def simple(name: str) -> str:
    """Returns a name that stands in a list of the command line, and is no number or other word."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    word = re.fullmatch(r"(?i)[\d._+-]*(e[\d_+-]*)?|null|true|false|nan|inf", plain)
    return f"model-{plain}" if word else plain


def _method(genome: Entry, notes: list[str], method: str, merged: int) -> dict[str, Any]:
    if method != "slerp":
        normalize = value(genome, "normalize", bool, method in _NORMALIZED)
        return {"method": method, "method.normalize": normalize}
    for key in ("normalize", "allow_negative_weights"):
        if genome.get(key) is not None:
            notes.append(f"genome.{key}: slerp reads none, in mergekit-evolve neither")
    if merged == 2:
        return {"method": "slerp"}
    notes.append(
        f"genome.merge_method: slerp of the two heaviest of {merged} models, chosen anew in every "
        "slice, has no counterpart: multi_slerp merges them all"
    )
    return {"method": "multi_slerp"}


def _space(
    genome: Entry, notes: list[str], method: str, share: float, *, random: bool
) -> dict[str, Any]:
    knobs, starts = _KNOBS[method], {"weight": share, "density": 1.0}
    fixed = {} if method in ("linear", "slerp") else {"scale": 1.0}  # mergekit's lambda
    space: dict[str, Any] = {
        "space": "coefficients",
        "space.knobs": knobs,
        "space.start": {**{k: "random" if random else starts[k] for k in knobs}, **fixed},
        "space.scale": dict.fromkeys(knobs, _SIGMA),
    }
    negative = value(genome, "allow_negative_weights", bool, default=False)
    if method == "slerp" or not negative:
        space["space.bounds"] = {"weight": [0, math.inf]}
    return {**space, "strategy": "cma"}


def _groups(genome: Entry, notes: list[str]) -> dict[str, Any]:
    if value(genome, "smooth", bool, default=False):
        notes.append(
            "genome.smooth has no counterpart: every slice of layers has a value of its own"
        )
    every = value(genome, "layer_granularity", int, 0)
    return {
        "grouping": "slices",
        "grouping.every": every if every > 0 else None,
        "grouping.filters": value(genome, "filters", list, []),
    }
