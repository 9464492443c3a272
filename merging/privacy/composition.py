"""Composition: what several releases from private data cost together, per data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merging.checkpoints.mechanisms import Mechanism
from merging.checkpoints.privacy_record import PrivacySpend, Relation
from merging.privacy import accounting
from merging.privacy.accounting import AccountingError


@dataclass(frozen=True)
class Price:
    """An epsilon and a delta; (inf, 1) promises nothing."""

    epsilon: float
    delta: float

    @property
    def vacuous(self) -> bool:
        """Whether it promises nothing."""
        return self.delta >= 1 or math.isinf(self.epsilon)

    def to_json(self) -> dict[str, float | None]:
        """Returns the price as JSON; null: infinite."""
        return {
            "epsilon": None if math.isinf(self.epsilon) else self.epsilon,
            "delta": self.delta,
        }


@dataclass(frozen=True)
class Guarantee:
    """What all releases together promise the units of one data set.

    Args:
        relation: what neighbouring data sets differ by.
        price: the smaller one of `added` and `rdp`.
        how: which of the two it is.
        added: the sum of all releases.
        rdp: by Renyi differential privacy at the same delta; None: mechanisms are not known, one
            release alone, or no accountant.
        note: why `rdp` is missing, where more could be known.
        overlapping: other data sets counted in, as nobody declared them disjoint.
        group_size: units that one secret may fill.
        group: the price of such a secret; None: it fills one.
    """

    dataset: str
    unit: str
    relation: Relation
    price: Price
    how: Literal["sum", "rdp"]
    added: Price
    rdp: Price | None
    note: str | None
    releases: int
    overlapping: tuple[str, ...]
    group_size: int = 1
    group: Price | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the guarantee as JSON."""
        return {
            "unit": self.unit,
            "relation": self.relation,
            **self.price.to_json(),
            "how": self.how,
            "sum": self.added.to_json(),
            "rdp": None if self.rdp is None else self.rdp.to_json(),
            "releases": self.releases,
            "overlapping": list(self.overlapping),
            "group_size": self.group_size,
            "group": None if self.group is None else self.group.to_json(),
        }


def guarantee(dataset: str, spends: Iterable[PrivacySpend]) -> Guarantee | None:
    """Returns what `spends` together promise the units of `dataset`.

    Releases from one data set add up, and so do those from data sets that are not declared
    disjoint from it: a record may lie in both. Releases from disjoint data sets cost its units
    nothing (parallel composition). The order of the spends changes nothing.

    Where spends are for both relations, those for ``add_or_remove`` count as groups of two: to
    replace a unit is to remove one and to add one.

    Returns:
        None where the spends protect different units, which do not compose.
    """
    spends = list(spends)
    apart = {pair for each in spends for pair in _disjoint(each)}
    counted = [each for each in spends if frozenset({each.dataset, dataset}) not in apart]
    counted.sort(key=repr)
    units = {each.unit for each in counted}
    if len(units) != 1:
        return None
    mixed = len({each.relation for each in counted}) > 1
    relation: Relation = "replace_one" if mixed else counted[0].relation
    parts = [_part(each, relation) for each in counted]
    added = add(price for price, _ in parts)
    rdp, note = _by_rdp(parts, relation)
    price = added if rdp is None or added.epsilon <= rdp.epsilon else rdp
    size = max(each.group_size for each in counted)
    return Guarantee(
        dataset=dataset,
        unit=units.pop(),
        relation=relation,
        price=price,
        how="sum" if price is added else "rdp",
        added=added,
        rdp=rdp,
        note=note,
        releases=len(counted),
        overlapping=tuple(sorted({each.dataset for each in counted} - {dataset})),
        group_size=size,
        group=group(price, size) if size > 1 else None,
    )


def add(prices: Iterable[Price]) -> Price:
    """Returns ``(sum epsilon, sum delta)``: basic composition; exact sums, rounded once."""
    prices = list(prices)
    delta = math.fsum(each.delta for each in prices)
    return Price(math.fsum(each.epsilon for each in prices), min(1.0, delta))


def largest(prices: Iterable[Price]) -> Price:
    """Returns ``(max epsilon, max delta)``: what holds for each of several disjoint data sets."""
    prices = list(prices)
    return Price(max(each.epsilon for each in prices), max(each.delta for each in prices))


def group(price: Price, size: int) -> Price:
    """Returns ``(k epsilon, delta sum_{i < k} e^(i epsilon))``: the price of k units at once.

    Source: Vadhan 2017, The complexity of differential privacy, lemma 2.2.
    """
    delta = 0.0
    for i in range(size if price.delta > 0 else 0):
        exponent = math.log(price.delta) + i * price.epsilon
        delta += math.exp(min(exponent, 0.0))
        if delta >= 1:
            break
    return Price(size * price.epsilon, min(1.0, delta))


def _disjoint(spend: PrivacySpend) -> list[frozenset[str]]:
    return [frozenset({spend.dataset, other}) for other in spend.disjoint_from]


def _part(spend: PrivacySpend, relation: Relation) -> tuple[Price, tuple[Mechanism, ...] | None]:
    """Returns price and mechanisms of a spend under `relation`."""
    price = Price(spend.epsilon, spend.delta)
    if spend.relation == relation:
        return price, spend.mechanisms
    return group(price, 2), None


def _by_rdp(
    parts: Sequence[tuple[Price, tuple[Mechanism, ...] | None]], relation: Relation
) -> tuple[Price | None, str | None]:
    """Returns the price by RDP, those of unknown mechanisms added; or why there is none."""
    known = [(price, mechanisms) for price, mechanisms in parts if mechanisms is not None]
    unknown = [price for price, mechanisms in parts if mechanisms is None]
    if len(parts) == 1:
        return None, None
    if len(known) < 2:
        return None, f"the mechanisms of {len(unknown)} of them are not known"
    if not accounting.available():
        return None, "dp-accounting, which may find less, is missing: pip install 'evomerge[dp]'"
    together = add(price for price, _ in known)
    mechanisms = sorted((each for _, some in known for each in some), key=repr)
    try:
        epsilon = accounting.epsilon(mechanisms, together.delta, relation=relation)
    except AccountingError as error:
        return None, str(error)
    return add([Price(epsilon, together.delta), *unknown]), None
