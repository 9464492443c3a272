"""Mechanisms: what was run on private data, as accountants need to know it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class RandomSelection:
    """One of several releases of independent noise, drawn by probabilities that no data chose.

    What it costs is an average over that draw, which nobody may know before it is made; which
    option was drawn is counted as a part of what is given out.

    Args:
        probabilities: of the options, each above 0, 1 in all. One option: a certain release.
        options: the mechanisms of all that went into each option, at least one.
        releases: identities of what went into each option, for `covered_releases`.
    """

    probabilities: tuple[float, ...]
    options: tuple[tuple["Mechanism", ...], ...]
    releases: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        check_tuple(self, "probabilities", float)
        if not all(0 < p <= 1 for p in self.probabilities) or math.fsum(self.probabilities) != 1:
            raise PrivacyRecordError(
                f"probabilities must be above 0 and sum to 1, got {self.probabilities}"
            )
        for name, kind in (("options", Mechanism), ("releases", str)):
            entries = getattr(self, name)
            check_tuple(self, name, tuple)
            if len(entries) != len(self.probabilities):
                raise PrivacyRecordError(f"{name} must be one for each of the probabilities")
            if not all(entry and all(isinstance(one, kind) for one in entry) for entry in entries):
                raise PrivacyRecordError(f"{name} holds something of another kind: {entries!r}")


Mechanism: TypeAlias = GaussianMechanism | PureEpsilon | RandomSelection
"""One of the six."""


def leaves(mechanisms: Iterable[Mechanism]) -> Iterator[GaussianMechanism | PureEpsilon]:
    """Yields all that may have run: of a random selection what every option holds."""
    for one in mechanisms:
        if isinstance(one, RandomSelection):
            for option in one.options:
                yield from leaves(option)
        else:
            yield one


def covered_releases(mechanisms: Iterable[Mechanism], *, certain: bool = False) -> set[str]:
    """Returns the releases that selections count in; `certain`: those that went in for certain."""
    selections = [one for one in mechanisms if isinstance(one, RandomSelection)]
    counted = [one.releases for one in selections if not certain or len(one.releases) == 1]
    return {name for releases in counted for names in releases for name in names}


_KINDS: Mapping[str, type[Mechanism]] = {
    "gaussian": GaussianMechanism,
    "discrete_gaussian": DiscreteGaussianMechanism,
    "pure": PureEpsilon,
    "laplace": LaplaceMechanism,
    "sparse_vector": SparseVector,
    "random_selection": RandomSelection,
}


def mechanism_to_json(mechanism: Mechanism) -> dict[str, Any]:
    """Returns the mechanism as JSON with its ``kind``, readable by `mechanism_from_json`."""
    kind = next(name for name, cls in _KINDS.items() if type(mechanism) is cls)
    if not isinstance(mechanism, RandomSelection):
        return {"kind": kind, **asdict(mechanism)}
    return {
        "kind": kind,
        "probabilities": list(mechanism.probabilities),
        "options": [list(map(mechanism_to_json, option)) for option in mechanism.options],
        "releases": list(map(list, mechanism.releases)),
    }


def mechanism_from_json(content: Any) -> Mechanism:
    """Returns what `mechanism_to_json` wrote; raises PrivacyRecordError, naming a wrong key."""
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PrivacyRecordError(
            f"a mechanism must have a kind of {', '.join(_KINDS)}, got {content!r}"
        )
    cls = _KINDS[kind]
    check_keys(f"mechanism {kind}", content, ["kind", *(field.name for field in fields(cls))])
    values = {key: value for key, value in content.items() if key != "kind"}
    return _selection(values) if cls is RandomSelection else cls(**values)


def _selection(content: Mapping[str, Any]) -> RandomSelection:
    try:
        return RandomSelection(
            tuple(content["probabilities"]),
            tuple(tuple(map(mechanism_from_json, option)) for option in content["options"]),
            tuple(map(tuple, content["releases"])),
        )
    except TypeError:
        raise PrivacyRecordError(f"random_selection must hold lists, got {content!r}") from None


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
