"""What is promised of the private data behind a zoo's models."""

import json
from collections.abc import Mapping
from typing import Any

from merging.checkpoints.mechanisms import PrivacyRecordError
from merging.checkpoints.privacy_record import RECORD_FILE, PrivacyRecord, unsealed
from merging.privacy.ledger import Ledger
from merging.privacy.words import rounded_up
from merging.zoo.store import Zoo, ZooModel

Json = Mapping[str, Any]


def ledger_of(zoo: Zoo, model: ZooModel) -> Json | None:
    """Returns a model's ledger as `Ledger.describe` writes it; None: it has no record.

    Raises:
        PrivacyRecordError: the record was edited, or is none; names the model.
    """
    if model.kind == "recipe":
        found: Json | None = zoo.recipe(model.name).get("privacy")
        return found
    records = [file.raw() for file in zoo.files(model.name) if file.name == RECORD_FILE]
    if not records:
        return None
    try:
        content = unsealed(json.loads(records[0]))
        record = PrivacyRecord.from_json({k: content[k] for k in ("spends", "unrecorded")})
    except (ValueError, KeyError) as error:
        raise PrivacyRecordError(
            f"{model.name} in the zoo {zoo.directory}: its {RECORD_FILE}: {error}; add it anew "
            "with the file that was written with the weights, or without one"
        ) from error
    return Ledger(record.spends, record.unrecorded).describe()


def in_short(ledger: Json | None) -> str:
    """Returns a ledger in a table's cell: ε by data set.

    Example:
        >>> in_short(None)
        'no record'
        >>> promise = {"epsilon": 3.00001, "delta": 1e-6}
        >>> in_short({"data_sets": {"letters": promise}, "unrecorded": []})
        'letters 3.001'
        >>> in_short({"data_sets": {"letters": {**promise, "delta": 1}}, "unrecorded": []})
        'letters none'
    """
    if ledger is None:
        return "no record"
    parts = [f"{name} {_epsilon(promise)}" for name, promise in ledger["data_sets"].items()]
    return ", ".join([*parts, *(["not private"] if ledger["unrecorded"] else [])]) or "public"


def _epsilon(promise: Json | None) -> str:
    if promise is None or promise["epsilon"] is None or promise["delta"] >= 1:
        return "none"
    return rounded_up(promise["epsilon"], 4)
