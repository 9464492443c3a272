"""What a deduplicated model cost: it is made of others' blocks, and of answers about accuracy."""

from collections.abc import Iterable

from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.ledger import Ledger


def deduplicated(
    target: Ledger, others: Iterable[Ledger], validation: Iterable[PrivacySpend] = ()
) -> Ledger:
    """Returns the ledger of a target that took blocks of others.

    It is post-processing of the target, of every model whose blocks could have been taken
    (distances to all of them decide which are), of the answers that said which blocks may go,
    and of deduplicated models that it had to fit: such as hold blocks of it, which must stay, or
    one that it may not be worse than. Each lists its own lineage; a release that reaches the
    model on several ways counts once, releases from the same or overlapping data add up, and of
    disjoint data the largest holds.

    Args:
        others: of the models whose blocks it could take, and of those that it had to fit.
        validation: of its own sparse vector; none where validation is public.
    """
    ledger = target
    for other in others:
        ledger = ledger.joined(other)
    return ledger.add(*validation)
