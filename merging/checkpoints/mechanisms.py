"""Mechanisms: what was run on private data, as accountants need to know it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from merging.weights import CheckpointError


class PrivacyRecordError(CheckpointError):
    """A privacy record that cannot be used; names the file or key, and the remedy."""


@dataclass(frozen=True)
class GaussianMechanism:
    """Gaussian noise on a sum of clipped contributions, of all units or of a Poisson sample.

    Args:
        noise_multiplier: standard deviation of the noise over the L2 sensitivity of the sum,
            under the relation of the spend.
        sampling_rate: probability with which every unit is in a step, independently of all
            others; 1: all are. Shuffled batches of fixed size are no Poisson sample.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "noise_multiplier")
        check_positive(self, "sampling_rate")
        if self.sampling_rate > 1:
            raise PrivacyRecordError(f"sampling_rate must be in (0, 1], got {self.sampling_rate}")
        check_count(self, "steps")


@dataclass(frozen=True)
class DiscreteGaussianMechanism(GaussianMechanism):
    """Discrete Gaussian noise on a sum of whole numbers, so that no rounding tells of a unit.

    Gaussian noise of other kinds is drawn and added in floating point: it promises what its
    formula says of exact arithmetic, not what an attack on the last bits of a result finds.
    """


@dataclass(frozen=True)
class PureEpsilon:
    """Mechanisms with delta 0 of which no more is known."""

    epsilon: float
    count: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "epsilon")
        check_count(self, "count")


@dataclass(frozen=True)
class LaplaceMechanism(PureEpsilon):
    """Laplace noise, all units in every release: epsilon is sensitivity over the noise's scale."""


@dataclass(frozen=True)
class SparseVector(PureEpsilon):
    """The sparse vector technique (AboveThreshold where it stops at the first).

    Epsilon is that of a whole run, threshold and queries together, however many were below; every
    run has noise of its own.

    Source: Lyu, Su & Li 2017, Understanding the sparse vector technique, arXiv 1603.01699.
    """


Mechanism: TypeAlias = GaussianMechanism | PureEpsilon
"""One of the five."""

_KINDS: Mapping[str, type[Mechanism]] = {
    "gaussian": GaussianMechanism,
    "discrete_gaussian": DiscreteGaussianMechanism,
    "pure": PureEpsilon,
    "laplace": LaplaceMechanism,
    "sparse_vector": SparseVector,
}


def mechanism_to_json(mechanism: Mechanism) -> dict[str, Any]:
    """Returns the mechanism as JSON with its ``kind``, readable by `mechanism_from_json`."""
    kind = next(name for name, cls in _KINDS.items() if type(mechanism) is cls)
    return {"kind": kind, **asdict(mechanism)}


def mechanism_from_json(content: Any) -> Mechanism:
    """Returns what `mechanism_to_json` wrote; raises PrivacyRecordError, naming a wrong key."""
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PrivacyRecordError(
            f"a mechanism must have a kind of {', '.join(_KINDS)}, got {content!r}"
        )
    cls = _KINDS[kind]
    check_keys(f"mechanism {kind}", content, ["kind", *(field.name for field in fields(cls))])
    return cls(**{key: value for key, value in content.items() if key != "kind"})


def check_keys(what: str, content: Any, expected: Sequence[str]) -> None:
    """Raises PrivacyRecordError unless `content` is an object with exactly these keys."""
    if not isinstance(content, Mapping):
        raise PrivacyRecordError(f"{what}: expected a JSON object, got {content!r}")
    for key in expected:
        if key not in content:
            raise PrivacyRecordError(f"{what}: {key!r} is missing")
    for key in content:
        if key not in expected:
            raise PrivacyRecordError(f"{what}: {key!r} is unknown, expected {', '.join(expected)}")


def check_number(owner: object, name: str) -> None:
    """Raises PrivacyRecordError unless the attribute is a finite number of at least 0."""
    value = getattr(owner, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise PrivacyRecordError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_positive(owner: object, name: str) -> None:
    """Raises PrivacyRecordError unless the attribute is a finite number above 0."""
    check_number(owner, name)
    if getattr(owner, name) == 0:
        raise PrivacyRecordError(f"{name} must be above 0")


def check_count(owner: object, name: str) -> None:
    """Raises PrivacyRecordError unless the attribute is a whole number of at least 1."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PrivacyRecordError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_tuple(owner: object, name: str, kind: Any) -> None:
    """Raises PrivacyRecordError unless the attribute is a tuple of one kind."""
    value = getattr(owner, name)
    if not isinstance(value, tuple) or not all(isinstance(entry, kind) for entry in value):
        raise PrivacyRecordError(f"{name} holds something of another kind: {value!r}")
