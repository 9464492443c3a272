"""Groupings: which parameters of a model share their coefficients."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

_LAYER = re.compile(r"^(?P<stack>.*?)\.(?P<index>\d+)\.")
_NORM = re.compile(
    r"(?:^|[._])(?:norm\d*|ln|ln_\w+|\w*layer_?norm\w*|\w*_norm|norm_\w+)(?:\.|$)", re.I
)
_ATTENTION = re.compile(r"attn|attention", re.I)
_MLP = re.compile(
    r"mlp|feed_?forward|ffn|intermediate|experts|moe|densereludense|\.fc\d|\.output\.dense", re.I
)

REST = "rest"


class Grouping(Protocol):
    """Assigns every parameter to a named group; a frozen dataclass of its options."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Returns parameter name to group name; groups in order of first appearance."""
        ...


@dataclass(frozen=True)
class Whole:
    """One group: the whole model shares its coefficients."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Returns ``model`` for every name."""
        return dict.fromkeys(names, "model")


@dataclass(frozen=True)
class Layers:
    """One group per `every` consecutive layers, one for all that lies outside the layers.

    Args:
        every: layers per group, at least 1.
        by_kind: split each group into attention, MLP and rest.
    """

    every: int = 1
    by_kind: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(
                f"grouping: every is {self.every!r}, it must be a whole number of layers, "
                "at least 1"
            )

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Returns groups such as ``layers.0-3``, ``layers.4-7`` and ``rest``."""
        depth: dict[str, int] = {}
        for name in names:
            if match := _LAYER.match(name):
                stack = match["stack"]
                depth[stack] = max(depth.get(stack, 0), int(match["index"]) + 1)
        labels = _short_labels(tuple(depth))
        groups = {}
        for name in names:
            groups[name] = self._label(name, depth, labels)
            if self.by_kind and groups[name] != REST:
                groups[name] += f".{kind(name)}"
        return groups

    def _label(self, name: str, depth: Mapping[str, int], labels: Mapping[str, str]) -> str:
        match = _LAYER.match(name)
        if match is None:
            return REST
        stack = match["stack"]
        first = int(match["index"]) // self.every * self.every
        last = min(first + self.every, depth[stack]) - 1
        span = f"{first}" if first == last else f"{first}-{last}"
        return f"{labels[stack]}.{span}"


@dataclass(frozen=True)
class Slices:
    """mergekit-evolve's groups: slices of layers, each split by parts of the parameters' names.

    What lies before the layers belongs to the first slice, what lies behind them to the last.

    Args:
        every: layers per slice, at least 1; None: one slice of all.
        filters: parts of names; the first that fits counts, the others share a group.
    """

    every: int | None = None
    filters: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", tuple(self.filters))
        if self.every is not None:
            Layers(self.every)  # checks it

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Returns groups such as ``layers.0-3.mlp`` and ``layers.0-3.rest``."""
        groups = dict.fromkeys(names, "model") if self.every is None else self._slices(names)
        return {n: f"{g}.{self._part(n)}" if self.filters else g for n, g in groups.items()}

    def _slices(self, names: Sequence[str]) -> dict[str, str]:
        assert self.every is not None
        groups = Layers(self.every).assign(names)
        last = next((group for group in groups.values() if group != REST), REST)
        for name, group in groups.items():
            groups[name] = last = last if group == REST else group
        return groups

    def _part(self, name: str) -> str:
        return next((part for part in self.filters if part in name), REST)


@dataclass(frozen=True)
class BlockKind:
    """Three groups: attention, MLP, and the rest (embeddings, norms, head)."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Returns ``attention``, ``mlp`` or ``rest`` for every name."""
        return {name: kind(name) for name in names}


@dataclass(frozen=True)
class PerTensor:
    """One group per parameter."""

    def assign(self, names: Sequence[str]) -> dict[str, str]:
        """Returns every name as its own group."""
        return {name: name for name in names}


def kind(name: str) -> str:
    """Returns ``attention``, ``mlp`` or ``rest`` for a parameter name; norms belong to the rest.

    Example:
        >>> kind("model.layers.0.self_attn.q_proj.weight"), kind("model.norm.weight")
        ('attention', 'rest')
    """
    if _NORM.search(name):
        return REST
    if _ATTENTION.search(name):
        return "attention"
    return "mlp" if _MLP.search(name) else REST


def layer_of(name: str) -> tuple[str, int] | None:
    """Returns (stack, index) of the layer that holds the parameter; None outside all layers.

    Example:
        >>> layer_of("model.layers.3.mlp.up_proj.weight")
        ('model.layers', 3)
    """
    match = _LAYER.match(name)
    return None if match is None else (match["stack"], int(match["index"]))


def describe(grouping: Grouping) -> dict[str, Any]:
    """Returns the grouping as JSON, readable by `from_description`."""
    return {"kind": type(grouping).__name__, **asdict(grouping)}  # type: ignore[call-overload]


def from_description(description: Mapping[str, Any]) -> Grouping:
    """Returns the grouping that `describe` wrote.

    Raises:
        ValueError: unknown kind or option.
    """
    kinds = {cls.__name__: cls for cls in (Whole, Layers, Slices, BlockKind, PerTensor)}
    options = dict(description)
    name = options.pop("kind", None)
    if name not in kinds:
        raise ValueError(f"recipe: unknown grouping {name!r}, expected one of {sorted(kinds)}")
    try:
        return kinds[name](**options)
    except TypeError as error:
        raise ValueError(f"recipe: grouping {name}: {error}") from None


def _short_labels(stacks: tuple[str, ...]) -> dict[str, str]:
    """Returns the last part of each stack's path, or the whole path where that is ambiguous."""
    tails = [stack.rsplit(".", 1)[-1] for stack in stacks]
    return {
        stack: tail if tails.count(tail) == 1 else stack
        for stack, tail in zip(stacks, tails, strict=True)
    }
