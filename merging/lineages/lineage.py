"""Lineages: individuals as the way they were bred, from founders by crossovers and mutations."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from merging.described import rebuild
from merging.lineages.crossover import CrossoverOperator
from merging.lineages.mutation import Mutation
from merging.paths.path import BASE


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


class _Individual:
    """Equality and hash of an individual by its `key`, a digest of founders and operators.

    Ancestors are shared: to compare branch by branch would take time exponential in the depth.
    """

    key: bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Individual) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, eq=False)
class Founder(_Individual):
    """An individual that was there before: an expert by its name, ``start``, or ``base``."""

    name: str
    key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _digest("founder", self.name))

    @property
    def parents(self) -> tuple[Lineage, ...]:
        """No parents."""
        return ()


@dataclass(frozen=True, eq=False)
class Crossed(_Individual):
    """A child of two parents."""

    first: Lineage = field(repr=False)
    second: Lineage = field(repr=False)
    by: CrossoverOperator
    key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parents = self.first.key.hex(), self.second.key.hex()
        object.__setattr__(self, "key", _digest("crossed", *parents, _written(self.by)))

    @property
    def parents(self) -> tuple[Lineage, ...]:
        """First and second."""
        return self.first, self.second


@dataclass(frozen=True, eq=False)
class Mutated(_Individual):
    """A child of one parent."""

    parent: Lineage = field(repr=False)
    by: Mutation
    key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        key = _digest("mutated", self.parent.key.hex(), _written(self.by))
        object.__setattr__(self, "key", key)

    @property
    def parents(self) -> tuple[Lineage, ...]:
        """The one parent."""
        return (self.parent,)


Lineage: TypeAlias = Founder | Crossed | Mutated
"""An individual with all its ancestors; those that it shares with others are the same objects."""


BASE_FOUNDER = Founder(BASE)
"""The base model: its task vector is zero."""


def ancestry(lineage: Lineage) -> list[Lineage]:
    """Returns the individual and all its ancestors, each once, parents before their children."""
    ordered: dict[Lineage, None] = {}
    waiting = [lineage]
    while waiting:
        missing = [parent for parent in waiting[-1].parents if parent not in ordered]
        if missing:
            waiting.extend(reversed(missing))
        else:
            ordered[waiting.pop()] = None
    return list(ordered)


def founders(lineage: Lineage) -> tuple[str, ...]:
    """Returns the names of all founders that the individual descends from, each once."""
    return tuple(node.name for node in ancestry(lineage) if isinstance(node, Founder))


def canonical(lineage: Lineage) -> Lineage:
    """Returns the same individual without the operators that change nothing.

    A child of one parent with itself, one that takes all from one parent, one whose mutation is
    idle (``ScaleMutation(1)``), and a mutation of the base, whose task vector is zero.
    """
    reduced: dict[Lineage, Lineage] = {}
    for node in ancestry(lineage):
        parents = [reduced[parent] for parent in node.parents]
        same = all(new is old for new, old in zip(parents, node.parents, strict=True))
        if isinstance(node, Founder):
            reduced[node] = node
        elif isinstance(node, Mutated):
            unchanged = node.by.idle or parents[0] == BASE_FOUNDER
            mutated = node if same else Mutated(parents[0], node.by)
            reduced[node] = parents[0] if unchanged else mutated
        else:
            side = 0 if parents[0] == parents[1] else node.by.identity_parent
            crossed = node if same else Crossed(parents[0], parents[1], node.by)
            reduced[node] = crossed if side is None else parents[side]
    return reduced[lineage]


def lineage_to_json(lineage: Lineage) -> dict[str, Any]:
    """Returns the lineage as JSON values, every number exactly, about 50 bytes per individual.

    ``operators`` holds import path and fields of every kind of operator; ``nodes`` holds founders
    as their names and children as ``[operator, [parents], values of the fields ...]``, each
    number the index of an entry further up; the last node is the individual itself.
    """
    operators: dict[tuple[str, ...], int] = {}
    index: dict[Lineage, int] = {}
    nodes: list[Any] = []
    for node in ancestry(lineage):
        if isinstance(node, Founder):
            nodes.append(node.name)
        else:
            operator = operators.setdefault(_signature(node.by), len(operators))
            nodes.append([operator, [index[parent] for parent in node.parents], *_values(node.by)])
        index[node] = len(index)
    return {"operators": [list(signature) for signature in operators], "nodes": nodes}


def lineage_from_json(value: Any) -> Lineage:
    """Returns what `lineage_to_json` wrote; raises ValueError, naming what makes no sense."""
    if not isinstance(value, Mapping):
        raise ValueError(f"lineage: expected an object with operators and nodes, got {value!r}")
    for key in ("operators", "nodes"):
        if not isinstance(value.get(key), list):
            raise ValueError(f"lineage: {key!r} must be a list, got {value.get(key)!r}")
    for signature in value["operators"]:
        texts = isinstance(signature, list) and all(isinstance(word, str) for word in signature)
        if not texts or not signature:
            raise ValueError(f"lineage: an operator must be [path, fields ...], got {signature!r}")
    if not value["nodes"]:
        raise ValueError("lineage: 'nodes' is empty: the last node is the individual itself")
    read: list[Lineage] = []
    for node in value["nodes"]:
        is_founder = isinstance(node, str)
        read.append(Founder(node) if is_founder else _child(node, value["operators"], read))
    return read[-1]


def _child(node: Any, operators: list[list[str]], read: list[Lineage]) -> Lineage:
    """Returns the child that a node stands for."""
    match node:
        case [int() as operator, [int(), *_] as parents, *values] if len(parents) <= 2:
            pass
        case _:
            raise ValueError(
                "lineage: a node must be a name or [operator, [one or two parents], numbers ...], "
                f"got {node!r}"
            )
    known = all(_is_index(parent, len(read)) for parent in parents)
    if not (known and 0 <= operator < len(operators)):
        raise ValueError(
            f"lineage: node {len(read)}, {node!r}, names an operator or a parent that does not "
            "stand before it"
        )
    path, *fields = operators[operator]
    if len(fields) != len(values):
        raise ValueError(
            f"lineage: {path} has {', '.join(fields)}, node {node!r} has other numbers"
        )
    options = {"_target_": path, **dict(zip(fields, values, strict=True))}
    if len(parents) == 1:
        mutation: Mutation = rebuild(options, "mutation", ("change", "idle", "measures"))
        return Mutated(read[parents[0]], mutation)
    members = ("apply", "single_parent", "measures")
    crossover: CrossoverOperator = rebuild(options, "crossover", members)
    return Crossed(read[parents[0]], read[parents[1]], crossover)


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _signature(by: CrossoverOperator | Mutation) -> tuple[str, ...]:
    """Returns import path and field names of an operator."""
    names = (field.name for field in dataclasses.fields(by))  # type: ignore[arg-type]
    return (f"{type(by).__module__}.{type(by).__qualname__}", *names)


def _values(by: CrossoverOperator | Mutation) -> list[Any]:
    """Returns the values of an operator's fields, as JSON gives them back."""
    values = [getattr(by, name) for name in _signature(by)[1:]]
    return [list(value) if isinstance(value, tuple) else value for value in values]


def _written(by: CrossoverOperator | Mutation) -> str:
    return json.dumps([_signature(by), _values(by)])
