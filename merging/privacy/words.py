"""Promises in words: what ledgers, recipes, model cards and reports say."""

import math
from collections.abc import Iterable, Iterator
from decimal import ROUND_CEILING, Context, Decimal

from merging.checkpoints.mechanisms import (
    GaussianMechanism,
    LaplaceMechanism,
    RandomSelection,
    leaves,
)
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.composition import Guarantee, Price

_NEIGHBOURS = {
    "add_or_remove": "one replaced by one that contributes nothing",
    "replace_one": "one replaced by any other",
}


def rounding_in_words(spends: Iterable[PrivacySpend]) -> Iterator[str]:
    """Yields what floating-point noise does not guard against, where there is any."""
    run = [
        (spend.dataset, type(one)) for spend in spends for one in leaves(spend.mechanisms or ())
    ]
    names = sorted({name for name, kind in run if kind in (GaussianMechanism, LaplaceMechanism)})
    if names:
        yield (
            f"Noise on {', '.join(names)} was drawn and added in floating point, as DP-SGD does: "
            "the numbers hold for exact arithmetic, and guard against whoever knows all records "
            "but one, but not against an attack on the last bits of what was noised."
        )


def selections_in_words(spends: Iterable[PrivacySpend]) -> Iterator[str]:
    """Yields what the guarantee of a merge does not say to those who see more than the merge."""
    for spend in spends:
        for one in spend.mechanisms or ():
            if not isinstance(one, RandomSelection):
                continue
            if len(one.options) == 1:
                yield (
                    f"What was given out ({spend.what}) costs what all of its parts cost "
                    "together: that their noise averages out is not counted."
                )
            else:
                yield (
                    f"What was given out ({spend.what}) was drawn in secret: the number is an "
                    "average over that draw, and whoever learns what was drawn, as from the "
                    "recipe, is promised what the drawn model alone promises."
                )
            yield (
                "This is for one who sees this merge only: every other model made from "
                f"{spend.dataset} that is seen too adds its own cost."
            )


def promise_in_words(promise: Guarantee) -> str:
    """Returns what the units of one data set are promised, without a full stop."""
    what = f"{price_in_words(promise.price)} per {promise.unit} of data set {promise.dataset}"
    parts = [f"{what} ({_NEIGHBOURS[promise.relation]})"]
    if promise.releases > 1 and promise.how == "rdp":
        parts.append(
            f"{promise.releases} releases composed by Rényi differential privacy, where their "
            f"sum is {price_in_words(promise.added)}"
        )
    elif promise.releases > 1:
        note = f" ({promise.note})" if promise.note else ""
        parts.append(f"the sum of {promise.releases} releases{note}")
    if promise.overlapping:
        others = ", ".join(promise.overlapping)
        parts.append(f"counting {others} too, which nobody declared disjoint from it")
    if promise.group is not None:
        price = "no guarantee" if promise.group.vacuous else price_in_words(promise.group)
        parts.append(f"for a secret that fills {promise.group_size} {promise.unit}s: {price}")
    return "; ".join(parts)


def price_in_words(price: Price) -> str:
    """Returns a price, rounded up."""
    if price.vacuous:
        what = "epsilon is infinite" if math.isinf(price.epsilon) else "delta reaches 1"
        return f"no guarantee ({what})"
    return f"(ε, δ) = ({rounded_up(price.epsilon, 4)}, {rounded_up(price.delta, 2)})"


def rounded_up(value: float, digits: int) -> str:
    """Returns a number that promises no more than `value`, with so many digits.

    Example:
        >>> rounded_up(8.0, 4), rounded_up(1.51537, 4), rounded_up(2e-05, 2)
        ('8', '1.516', '2e-05')
    """
    near = Decimal(f"{value:.12g}")  # 16.000000000000004 is 16
    return f"{float(Context(prec=digits, rounding=ROUND_CEILING).plus(near)):g}"
