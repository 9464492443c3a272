"""What a deduplicated model cost: it is made of others' blocks, and of answers about accuracy."""

from collections.abc import Iterable

from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.ledger import Ledger


def deduplicated(
    target: Ledger, bases: Iterable[Ledger], validation: Iterable[PrivacySpend] = ()
) -> Ledger:
    """Returns the ledger of a target that took blocks of others.

    It is post-processing of the target, of every model whose blocks could have been taken
    (distances to all of them decide which are), and of the answers that said which blocks may
    go. Each lists its own lineage; a release that reaches the model on several ways counts
    once, releases from the same or overlapping data add up, and of disjoint data the largest
    holds.

    Args:
        validation: of every sparse vector that it depends on; none where validation is public.
    """
    ledger = target
    for base in bases:
        ledger = ledger.joined(base)
    return ledger.add(*validation)
