"""Options that are missing, of a wrong type or out of range: refused by name, before any work."""

import inspect
import math
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from experiments.runs.errors import UserError
from experiments.runs.spelling import did_you_mean
from search.loop.session import Budget


@dataclass(frozen=True)
class _Plain:
    """What an option outside all groups may be: a type, and the range of a number."""

    kind: Any
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf


_PLAIN: Mapping[str, _Plain] = {
    "name": _Plain(str),
    "seed": _Plain(int, 0, 2**32 - 1),
    "out": _Plain(str | None),
    "runs": _Plain(str),
    "cache": _Plain(str),
    "finalists": _Plain(int, 1),
    "asynchronous": _Plain(bool),
    "common_items": _Plain(float | None, above=0, below=1),
    "sampling": _Plain(Literal["fixed", "poisson"] | None),
    "choose": _Plain(Literal["second_look", "shrinkage", "last", "svt"]),
    "overlap": _Plain(Literal["drop", "refuse"]),
    "save_model": _Plain(bool),
    "experiment_file": _Plain(bool),
    "adapter_rank": _Plain(int | None, 1),
    "zoo": _Plain(bool | str | None),
    "device": _Plain(str),
    "dtype": _Plain(str),
    "save_dtype": _Plain(str | None),
    "batch_tokens": _Plain(int | None, 1),
    "compile": _Plain(bool),
    "stream": _Plain(bool | Literal["auto"]),
    "keep_gb": _Plain(float | None, 0),
    "timeout_s": _Plain(float | None, above=0),
    "threads": _Plain(int | None, 1),
    "knobs": _Plain(Mapping[str, float | Mapping[str, float]] | None),
    "mergekit": _Plain(str | None),
    "target_epsilon": _Plain(float | None, above=0),
    "target_delta": _Plain(float | None, above=0, below=1),
    "dial": _Plain(Literal["best", "selection", "combination"]),
    "accountant": _Plain(Literal["rdp", "pld"]),
    "model": _Plain(str),
    "base": _Plain(str | None),
    "trust_remote_code": _Plain(bool),
    "kind": _Plain(Literal["gram", "fisher"]),
    "blocks": _Plain(int, 0),
    "host": _Plain(str),
    "port": _Plain(int, 0, 65535),
    "secret_file": _Plain(str | None),
    "secret_env": _Plain(str | None),
    "limit_mb": _Plain(float, above=0),
    "wait_s": _Plain(float, above=0),
    "folder": _Plain(str),
    "checkpoint_steps": _Plain(int, 1),
    "data": _Plain(str | None),
    "train": _Plain(str | None),
    "held_out": _Plain(str | None),
    "public": _Plain(str | None),
    "max_length": _Plain(int, 1),
    "examples_per_message": _Plain(int, 1),
    "tasks": _Plain(str | Sequence[str | Mapping[str, Any]] | None),
    "per_expert": _Plain(Mapping[str, Sequence[str]] | None),
    "models": _Plain(Mapping[str, str]),
    "bases": _Plain(Sequence[str] | None),
    "plan": _Plain(Literal["greedy", "multi", "cross"]),
    "ceilings": _Plain(Mapping[str, float] | None),
    "fair": _Plain(bool),
    "block_size": _Plain(int, 1),
    "tolerance": _Plain(float, 0),
    "store": _Plain(str | None),
    "save": _Plain(bool),
    "suffix": _Plain(str),
}
_PANELS = {
    "search_on": "search",
    "select_on": "selection",
    "report_on": "report",
    "gather_on": "gathered",
    "check_on": "checked",
    "saliency_on": "public",
}
_SHORT = {"experts.base": "base=ID_OR_DIR", "experts.experts": "'experts={NAME:DIR,...}'"}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def check_options(config: DictConfig) -> None:
    """Compares the options outside all groups with what they may be; imports nothing heavy.

    Raises:
        UserError: an option is missing, of another type or out of range; names it.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        remedy = _SHORT.get(missing[0], f"{missing[0]}=VALUE")
        raise UserError(f"{missing[0]} is not set: give {remedy}")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    for key, plain in _PLAIN.items():
        if key in resolved:
            _check_plain(key, resolved[key], plain)
    if isinstance(baselines := resolved.get("baselines"), dict):
        _check_plain("baselines.report", baselines.get("report"), _Plain(int | Literal["all"], 0))
    if resolved.get("tasks") is not None and resolved.get("privacy"):
        raise UserError(
            "tasks= draws items by what all of them hold: one private record decides about "
            "others: choose the items by place, with evaluator@search_on=NAME and take=START:STOP"
        )
    splits = resolved.get("splits")  # what is no mapping, `with_tasks` names
    for key, option in splits.items() if isinstance(splits, Mapping) else ():
        _check_plain(f"splits.{key}", option, _Plain(int if key == "seed" else int | None, 0))
    if "budget" in resolved:
        _check_arguments("budget", Budget, resolved["budget"])
    for key, split in _PANELS.items():
        if resolved.get(key) is not None and not isinstance(resolved[key], dict):
            raise UserError(
                f"the {split} items are {resolved[key]!r}: choose a group with "
                f"evaluator@{key}=NAME, for example evaluator@{key}=perplexity"
            )


def check_groups(config: DictConfig) -> None:
    """Compares the options of every group with the arguments of what the group builds.

    Raises:
        UserError: an option is unknown or of another type, or there is no such class; names it.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    for path, node in _nodes(raw, OmegaConf.to_container(config, resolve=True)):
        built = _locate(path, node["_target_"])
        options = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
        _check_arguments(path, built, options)


def _check_plain(key: str, value: Any, plain: _Plain) -> None:
    _check_kind(key, value, plain.kind)
    if not isinstance(value, int | float):
        return
    if not plain.least <= value <= plain.most:
        limit = f"at least {plain.least}" if value < plain.least else f"at most {plain.most}"
        raise UserError(f"{key}={value}: it must be {limit}")
    if not value > plain.above:
        raise UserError(f"{key}={value}: it must be above {plain.above}")
    if not value < plain.below:
        raise UserError(f"{key}={value}: it must be below {plain.below}")


def _nodes(raw: Any, resolved: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields every part that is built from a ``_target_``; what an interpolation copies, once."""
    if not isinstance(raw, dict):
        return
    if "_target_" in raw:
        yield path, resolved
    for key in raw:
        yield from _nodes(raw[key], resolved[key], f"{path}.{key}" if path else str(key))


def _check_arguments(path: str, built: Any, options: Mapping[str, Any]) -> None:
    """Compares options with the arguments of a class or function."""
    parameters = inspect.signature(built).parameters
    # of a dataclass by its fields: an inherited one is spelt in the names of its own module
    by_init = inspect.isclass(built) and not is_dataclass(built)
    hints = get_type_hints(built.__init__ if by_init else built)
    for option, value in options.items():
        if option not in parameters:
            raise UserError(
                f"{path}.{option}: {built.__name__} has no such option, only "
                f"{', '.join(parameters) or 'none'}{did_you_mean(option, parameters)}"
            )
        _check_kind(f"{path}.{option}", value, hints.get(option, Any))


def _locate(path: str, target: Any) -> Any:
    try:
        built = pydoc.locate(str(target))
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {error.value}") from error
    if not callable(built):
        raise UserError(
            f"{path}._target_={target} does not exist: give the import path of a class"
        )
    return built


def _check_kind(key: str, value: Any, kind: Any) -> None:
    if not _fits(value, kind):
        hint = "; quote it" if "text" in _words(kind) and isinstance(value, int | float) else ""
        raise UserError(f"{key}={value}: expected {_words(kind)}{hint}")


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if kind in (None, NoneType):
        return value is None
    if isinstance(value, dict) and "_target_" in value:
        return True  # built when it is needed; its own options are compared by themselves
    if kind in _WORDS:
        numbers = (int, float) if kind is float else kind
        return isinstance(value, numbers) and (kind is bool or not isinstance(value, bool))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(
            _fits(name, parts[0]) and _fits(each, parts[1]) for name, each in value.items()
        )
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(_fits(each, parts[0]) for each in value)
    return isinstance(value, dict)


def _words(kind: Any) -> str:
    """Returns a type in words, for example ``a whole number or null``."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(part) for part in parts)
    if origin is Literal:
        return " or ".join(repr(part) for part in parts)
    if kind in (None, NoneType):
        return "null"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"a mapping {{NAME: {_words(parts[1])}}}"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list [{_words(parts[0])}, ...]"
    return _WORDS.get(kind, "a group with a _target_")
