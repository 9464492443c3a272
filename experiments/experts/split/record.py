"""What the expert of a split training says of the data that it learnt from."""

from pathlib import Path

from merging.privacy.ledger import Ledger


def split_ledger(base: Path, data: str, protection: str) -> Ledger:
    """Returns the ledger of the base with a training on states that a customer sent.

    Metric privacy of tokens is no (epsilon, delta) of records, and labels are sent as they are:
    the expert counts as not private, and `protection` says in words what held for the states.

    Raises PrivacyRecordError: the base's record is broken.
    """
    ledger = Ledger.of_base(base, "the model it started from")
    return ledger.read(None, f"split training on {data} ({protection})", None)
