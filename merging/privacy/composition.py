"""Composition: what several releases from private data cost together, per data set."""

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
    """An epsilon and a delta; `NO_GUARANTEE`, (inf, 1), promises nothing."""

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


NO_GUARANTEE = Price(math.inf, 1.0)


@dataclass(frozen=True)
class Guarantee:
    """What all releases together promise the units of one data set.

    Args:
        price: the smaller one of `added` and `rdp`; `how` says which.
        added: the sum of all releases.
        rdp: by Renyi differential privacy at the same delta, but never below its largest part,
            whose list of mechanisms may be wrong; None: mechanisms are not known, one
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
    """Returns the promise of `spends` to the units of `dataset`; None: units that do not compose.

    Releases from one data set add up, and so do those from data sets that are not declared
    disjoint from it: a record may lie in both. Releases from disjoint data sets cost its units
    nothing (parallel composition). The order of the spends changes nothing.

    Where spends are for both relations, those for ``add_or_remove`` count as groups of two: to
    replace a unit by another is to do so by way of one that contributes nothing.
    """
    spends = list(spends)
    apart = {frozenset({s.dataset, other}) for s in spends for other in s.disjoint_from}
    counted = [s for s in spends if frozenset({s.dataset, dataset}) not in apart]
    counted.sort(key=repr)
    units = {spend.unit for spend in counted}
    if len(units) != 1:
        return None
    mixed = len({spend.relation for spend in counted}) > 1
    relation: Relation = "replace_one" if mixed else counted[0].relation
    parts = [_priced(spend, relation) for spend in counted]
    added = add(price for price, _ in parts)
    rdp, note = _by_rdp(parts, relation)
    price = added if rdp is None or added.epsilon <= rdp.epsilon else rdp
    size = max(spend.group_size for spend in counted)
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
        overlapping=tuple(sorted({spend.dataset for spend in counted} - {dataset})),
        group_size=size,
        group=group(price, size) if size > 1 else None,
    )


def add(prices: Iterable[Price]) -> Price:
    """Returns ``(sum epsilon, sum delta)``: basic composition; exact sums, rounded once."""
    prices = list(prices)
    delta = math.fsum(price.delta for price in prices)
    return Price(math.fsum(price.epsilon for price in prices), min(1.0, delta))


def largest(prices: Iterable[Price]) -> Price:
    """Returns ``(max epsilon, max delta)``: what holds for each of several disjoint data sets."""
    prices = list(prices)
    return Price(max(p.epsilon for p in prices), max(p.delta for p in prices))


def group(price: Price, size: int) -> Price:
    """Returns ``(k epsilon, delta sum_{i < k} e^(i epsilon))``: the price of k units at once.

    Source: Vadhan 2017, The complexity of differential privacy, lemma 2.2.
    """
    if math.isinf(price.epsilon):
        return NO_GUARANTEE
    delta = 0.0
    for i in range(size if price.delta > 0 else 0):
        exponent = math.log(price.delta) + i * price.epsilon
        delta += math.exp(min(exponent, 0.0))  # delta e^(i epsilon)
        if delta >= 1:
            break
    return Price(size * price.epsilon, min(1.0, delta))


def _priced(spend: PrivacySpend, relation: Relation) -> tuple[Price, tuple[Mechanism, ...] | None]:
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
    if len(parts) == 1 or any(math.isinf(price.epsilon) for price in unknown):
        return None, None
    if len(known) < 2:
        return None, f"the mechanisms of {len(unknown)} of them are not known"
    if not accounting.available():
        return None, "dp-accounting, which may find less, is missing: pip install 'evomerge[dp]'"
    together = add(price for price, _ in known)
    mechanisms = sorted((one for _, several in known for one in several), key=repr)
    try:
        epsilon = accounting.epsilon(mechanisms, together.delta, relation=relation)
    except AccountingError as error:
        return None, str(error)
    epsilon = max(epsilon, largest(price for price, _ in known).epsilon)
    return add([Price(epsilon, together.delta), *unknown]), None
