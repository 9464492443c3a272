"""Metric privacy: noise on vectors of tokens, which bounds no epsilon of a record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from merging.checkpoints.mechanisms import PrivacyRecordError, check_keys, check_positive

Budgets: TypeAlias = Literal["uniform", "labels", "noised_counts"]
"""Where budgets come from: one for all tokens; counts of labelled text, as they are or noised."""


@dataclass(frozen=True)
class MetricNoise:
    """Noise of density ``~ exp(-eta |z|)`` on the vector of every token, drawn once each.

    ``Pr[M(x) in S] <= exp(eta |x - x'|) Pr[M(x') in S]`` for vectors x, x' of tokens of one eta;
    over the tokens of a sentence the distances add up. Tokens of different etas have no bound.

    Args:
        space: which vectors (a layer of a model), in words; etas of one space add up.
        eta: the largest of any token, per Euclidean distance 1.
        least_eta: the smallest of any token.
        neighbours: mean distance to the nearest vector of another token among `measured_on`.
        measured_on: in words.
        budgets: where `eta` and `least_eta` differ, whence.
        learned: `space` follows from the training sentences, without noise.

    Source: Chatzikokolakis, Andrés, Bordenabe, Palamidessi 2013, Broadening the Scope of
        Differential Privacy Using Metrics.
    """

    space: str
    eta: float
    least_eta: float
    neighbours: float
    measured_on: str
    budgets: Budgets = "uniform"
    learned: bool = False

    def __post_init__(self) -> None:
        for name in ("eta", "least_eta", "neighbours"):
            check_positive(self, name)
        if self.least_eta > self.eta:
            raise PrivacyRecordError(f"least_eta {self.least_eta} is above eta {self.eta}")
        for name in ("space", "measured_on"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise PrivacyRecordError(f"{name} must be text that is not empty, got {value!r}")
        if self.budgets not in get_args(Budgets):
            expected = ", ".join(get_args(Budgets))
            raise PrivacyRecordError(f"budgets must be one of {expected}, got {self.budgets!r}")
        if not isinstance(self.learned, bool):
            raise PrivacyRecordError(f"learned must be true or false, got {self.learned!r}")

    def to_json(self) -> dict[str, Any]:
        """Returns the noise as JSON, readable by `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "MetricNoise":
        """Returns what `to_json` wrote; raises PrivacyRecordError, naming a wrong key."""
        if isinstance(content, Mapping):
            content = {"learned": False, **content}  # older records do not say
        check_keys("metric", content, [field.name for field in fields(cls)])
        return cls(**content)
