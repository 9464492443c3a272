"""Metric privacy in words: what noised states of tokens promise, and what they do not."""

import math
from collections.abc import Iterable, Iterator

from merging.checkpoints.metric_privacy import MetricNoise
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.composition import guarantee
from merging.privacy.words import promise_in_words, rounded_up

_BUDGETS = {
    "labels": "follow from counts of the labelled sentences and tell of labels",
    "noised_counts": "follow from counts that were released with noise",
}


def metric_in_words(spends: Iterable[PrivacySpend]) -> Iterator[str]:
    """Yields the verdict on every data set whose tokens' states were given out, and the bounds."""
    spends = list(spends)
    apart = {frozenset({s.dataset, other}) for s in spends for other in s.disjoint_from}
    names = sorted({spend.dataset for spend in spends if spend.metric is not None})
    for name in names:
        own = [spend for spend in spends if spend.dataset == name]
        yield (
            f"Not private in terms of (ε, δ): of data set {name} noised states of tokens were "
            "given out, which bounds no (ε, δ) of a record; labels and the numbers of tokens were "
            "sent as they are."
        )
        noises = [spend.metric for spend in own if spend.metric is not None]
        spaces = sorted({noise.space for noise in noises})
        for space in spaces:
            yield from _bounds(name, [noise for noise in noises if noise.space == space])
        yield (
            "Over the tokens of a sentence the distances add up"
            + (f", and the bounds of these {len(spaces)} layers multiply" * (len(spaces) > 1))
            + "; they hold for exact arithmetic, noise was added in floating point."
        )
        others = [o for o in names if o != name and frozenset({o, name}) not in apart]
        if others:
            yield (
                f"Sentences of {name} that lie in {', '.join(others)} too, which nobody declared "
                "disjoint from it, were noised anew there: the bounds multiply."
            )
        promise = guarantee(name, [spend for spend in own if spend.metric is None])
        if promise is not None:
            yield f"For what else was released from it, and alone: {promise_in_words(promise)}."


def _bounds(dataset: str, noises: list[MetricNoise]) -> Iterator[str]:
    """Yields the bound of several releases of one space: ``exp(sum_i eta_i r)``."""
    eta, one = math.fsum(noise.eta for noise in noises), noises[0]
    summed = f", the sum of {len(noises)} releases noised anew" if len(noises) > 1 else ""
    yield (
        f"Metric privacy per token of data set {dataset}: two tokens of one budget whose "
        f"{one.space} are at Euclidean distance r are told apart by at most exp(η r), "
        f"η = {rounded_up(eta, 4)}{summed}; among {one.measured_on} the nearest of another token "
        f"is {one.neighbours:.4g} away on average, where that is "
        f"exp({rounded_up(eta * one.neighbours, 4)})."
    )
    if any(noise.learned for noise in noises):
        yield (
            "The directions follow from the training sentences without noise; the bound is "
            "conditional on them: it holds for the sentences asked about, not for those trained "
            "on."
        )
    for noise in dict.fromkeys(noise for noise in noises if noise.budgets in _BUDGETS):
        yield (
            f"Budgets of tokens (η from {noise.least_eta:.4g} to {rounded_up(noise.eta, 4)}) "
            f"{_BUDGETS[noise.budgets]}; they show in the length of the noise, so that tokens of "
            "different budgets have no bound."
        )
