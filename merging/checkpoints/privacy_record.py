"""Privacy records: what was released from which private data, and what that cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from merging.checkpoints.hashing import files_sha256
from merging.checkpoints.mechanisms import (
    Mechanism,
    PrivacyRecordError,
    check_count,
    check_keys,
    check_number,
    check_tuple,
    mechanism_from_json,
    mechanism_to_json,
)
from merging.checkpoints.metric_privacy import MetricNoise
from merging.checkpoints.weight_files import WeightFiles
from merging.files import write_text
from merging.weight_names import is_adapter

RECORD_FILE = "privacy.json"
"""Lies beside the weights of an expert; an expert without it counts as not private."""

FORMAT = 1

Relation: TypeAlias = Literal["add_or_remove", "replace_one"]
"""What two neighbouring data sets differ by: their sizes are equal and public.

``add_or_remove``: in place of one unit stands one that contributes nothing; ``replace_one``: any
other unit.
"""


@dataclass(frozen=True)
class PrivacySpend:
    """One release from one private data set, and its price.

    Args:
        dataset: name of the data; equal names, the same data. No digest of the records: whoever
            knows all but one could try the last.
        accountant: who computed them, for example ``dp-accounting rdp``.
        unit: what is protected, for example ``record``.
        relation: what neighbouring data sets differ by.
        mechanisms: all that was run on the data, in order; None: not known; empty: only where
            epsilon is 0.
        group_size: how many units one secret may fill, where that is known to be more than one
            (a canary repeated ten times: 10).
        what: what was released, in words.
        disjoint_from: data sets that are declared to share no unit with this one, whatever units
            are added, removed or replaced; all others are taken to overlap with it.
        release: identity of what was released; equal spends with one identity are one spend, so
            that an expert which reaches a merge on two ways is paid once. None: never equal.
        metric: noise on states of tokens; then epsilon is infinite. None: a release of another
            kind.

    Raises:
        PrivacyRecordError: a value makes no sense; names it.
    """

    dataset: str
    epsilon: float
    delta: float
    accountant: str
    accountant_version: str
    unit: str = "record"
    relation: Relation = "add_or_remove"
    mechanisms: tuple[Mechanism, ...] | None = None
    group_size: int = 1
    what: str = "training"
    disjoint_from: tuple[str, ...] = ()
    release: str | None = None
    metric: MetricNoise | None = None

    def __post_init__(self) -> None:
        for name in ("dataset", "accountant", "accountant_version", "unit", "what"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise PrivacyRecordError(f"{name} must be text that is not empty, got {value!r}")
        if self.release is not None and not isinstance(self.release, str):
            raise PrivacyRecordError(f"release must be text or null, got {self.release!r}")
        if self.relation not in get_args(Relation):
            expected = " or ".join(get_args(Relation))
            raise PrivacyRecordError(f"relation must be {expected}, got {self.relation!r}")
        if self.metric is None:
            check_number(self, "epsilon")
        elif self.epsilon != math.inf or self.mechanisms is not None:
            raise PrivacyRecordError(
                "metric privacy bounds no epsilon: it must be infinite, and mechanisms null"
            )
        check_number(self, "delta")
        if self.delta >= 1:
            raise PrivacyRecordError(f"delta must be in [0, 1), got {self.delta}")
        check_count(self, "group_size")
        check_tuple(self, "disjoint_from", str)
        if self.dataset in self.disjoint_from:
            raise PrivacyRecordError(f"data set {self.dataset!r} is declared disjoint from itself")
        if self.mechanisms is not None:
            check_tuple(self, "mechanisms", Mechanism)
            if not self.mechanisms and self.epsilon > 0:
                raise PrivacyRecordError(
                    f"mechanisms is empty though epsilon is {self.epsilon:g}: list them, or write "
                    "null where they are not known"
                )

    def to_json(self) -> dict[str, Any]:
        """Returns the spend as JSON, readable by `from_json`."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["disjoint_from"] = list(self.disjoint_from)
        if self.metric is None:
            del content["metric"]  # older records have none
        else:
            content |= {"metric": self.metric.to_json(), "epsilon": None}
        if self.mechanisms is not None:
            content["mechanisms"] = list(map(mechanism_to_json, self.mechanisms))
        return content

    @classmethod
    def from_json(cls, content: Any) -> PrivacySpend:
        """Returns what `to_json` wrote; raises PrivacyRecordError, naming a wrong key."""
        names = [field.name for field in fields(cls)]
        if isinstance(content, Mapping) and "metric" not in content:
            names.remove("metric")
        check_keys("spend", content, names)
        values = dict(content)
        if "metric" in values:
            values["metric"] = MetricNoise.from_json(values["metric"])
            values["epsilon"] = math.inf if values["epsilon"] is None else values["epsilon"]
        for name in ("mechanisms", "disjoint_from"):
            if not isinstance(values[name], list | None):
                raise PrivacyRecordError(f"{name} must be a list, got {values[name]!r}")
        if values["mechanisms"] is not None:
            values["mechanisms"] = tuple(map(mechanism_from_json, values["mechanisms"]))
        values["disjoint_from"] = tuple(values["disjoint_from"] or ())
        return cls(**values)


@dataclass(frozen=True)
class PrivacyRecord:
    """All that was released from private data into one model.

    Args:
        spends: one per release and data set.
        unrecorded: what went into the model without a record (``expert 'code'``): where there is
            any, the model is not private.
    """

    spends: tuple[PrivacySpend, ...] = ()
    unrecorded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_tuple(self, "spends", PrivacySpend)
        check_tuple(self, "unrecorded", str)

    def to_json(self) -> dict[str, Any]:
        """Returns the record as JSON, readable by `from_json`."""
        return {
            "spends": [spend.to_json() for spend in self.spends],
            "unrecorded": list(self.unrecorded),
        }

    @classmethod
    def from_json(cls, content: Any) -> PrivacyRecord:
        """Returns what `to_json` wrote; raises PrivacyRecordError, naming a wrong key."""
        check_keys("record", content, ["spends", "unrecorded"])
        for name in ("spends", "unrecorded"):
            if not isinstance(content[name], list):
                raise PrivacyRecordError(f"{name} must be a list, got {content[name]!r}")
        return cls(
            tuple(map(PrivacySpend.from_json, content["spends"])), tuple(content["unrecorded"])
        )


def write_record(directory: Path, record: PrivacyRecord, *, words: Sequence[str] = ()) -> Path:
    """Writes `record` beside the weights in `directory`, bound to these very weights.

    `words` say it in sentences, for people; they are not read back. Returns the file; raises
    CheckpointError where there are no weights.
    """
    path = directory / RECORD_FILE
    write_text(path, record_text(record, weights_sha256(directory), words=words))
    return path


def record_text(record: PrivacyRecord, weights: str, *, words: Sequence[str] = ()) -> str:
    """Returns the file that `write_record` writes, for weights of this identity."""
    content = {"format": FORMAT, "weights": weights, "words": list(words), **record.to_json()}
    return json.dumps(sealed(content), indent=2) + "\n"


def read_record(directory: Path) -> PrivacyRecord | None:
    """Returns the record beside the weights in `directory`; None: there is none.

    Raises PrivacyRecordError where the file is no record, was edited, or is of other weights.
    """
    path = directory / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record, _ = record_of(path.read_bytes(), weights_sha256(directory))
    except (OSError, PrivacyRecordError) as error:
        raise PrivacyRecordError(f"{path}: {error}") from None
    return record


def record_of(raw: bytes, weights: str) -> tuple[PrivacyRecord, tuple[str, ...]]:
    """Returns the record in a file beside weights of this identity, and its words.

    Raises PrivacyRecordError where it is no record, was edited, or is of other weights.
    """
    try:
        content = unsealed(json.loads(raw))
    except PrivacyRecordError:
        raise
    except ValueError as error:
        raise PrivacyRecordError(
            f"it cannot be read ({error}): restore the file that was written with the weights"
        ) from error
    return _record_of(content, weights), tuple(map(str, content["words"]))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `content` with the digest by which `unsealed` tells that nobody edited it."""
    return {**content, "sha256": _digest(content)}


def unsealed(content: Any) -> dict[str, Any]:
    """Returns what was sealed, without the digest; raises PrivacyRecordError where it was edited.

    The digest guards against mistakes, not against people who mean to deceive.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("sha256"), str):
        raise PrivacyRecordError(
            "expected a JSON object with a sha256: this is no privacy record of evomerge"
        )
    inside = {key: value for key, value in content.items() if key != "sha256"}
    if _digest(inside) != content["sha256"]:
        raise PrivacyRecordError(
            "it was edited after it was written, its sha256 is that of another content: restore "
            "the file that was written with the weights"
        )
    return inside


def _record_of(content: Mapping[str, Any], weights: str) -> PrivacyRecord:
    check_keys("file", content, ["format", "weights", "words", "spends", "unrecorded"])
    if content["format"] != FORMAT:
        raise PrivacyRecordError(
            f"format {content['format']!r} is not {FORMAT}: read it with the version of evomerge "
            "that wrote it"
        )
    if content["weights"] != weights:
        raise PrivacyRecordError(
            f"it was written for weights {str(content['weights'])[:12]}, beside it lie "
            f"{weights[:12]}: a record holds for no other weights, so remove it or bring back the "
            "weights"
        )
    return PrivacyRecord.from_json({key: content[key] for key in ("spends", "unrecorded")})


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(directory: Path) -> str:
    """Returns the identity of the weight files of a checkpoint or an adapter, or of statistics."""
    if not any((directory / f"{kind}config.json").is_file() for kind in ("", "adapter_")):
        return files_sha256(sorted(directory.glob("*.safetensors")))
    return files_sha256(WeightFiles.find(directory, adapter=is_adapter(directory)).files)
