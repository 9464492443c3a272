"""What experts cost together, and in a draw: by records that know what ran on one data set."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from merging.checkpoints.mechanisms import (
    DiscreteGaussianMechanism,
    Mechanism,
    PrivacyRecordError,
    RandomSelection,
    leaves,
)
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy import accounting
from merging.privacy.accounting import Accountant
from merging.privacy.composition import Price
from merging.privacy.ledger import Ledger

Group: TypeAlias = tuple[str, ...]
"""Names of experts that are merged, in the order of the list."""

_MOST = 8  # experts: the best of all draws between two groups is one of 4^n / 4


class DialError(PrivacyRecordError):
    """Experts that cannot be dialled, or not to this epsilon; says why and what helps."""


@dataclass(frozen=True)
class PriceList:
    """Prices of merges of experts whose records know what ran on one data set.

    Args:
        experts: name -> what the expert alone cost.
        delta: of every price.
        accountant: of merges; an expert given out for certain keeps what its record states.

    Raises:
        DialError: an expert has no record, lists no private data, other data or units than the
            others, or mechanisms that are unknown or too few for what it states.
    """

    experts: Mapping[str, Ledger]
    delta: float
    accountant: Accountant = "rdp"

    def __post_init__(self) -> None:
        if not 1 <= len(self.experts) <= _MOST:
            raise DialError(f"the dial takes 1 to {_MOST} experts, got {len(self.experts)}")
        if not 0 < self.delta < 1:
            raise DialError(
                f"the dial's delta must be in (0, 1), got {self.delta:g}: name one, as "
                "target_delta of a merge, or --delta; experts of pure epsilon state none"
            )
        for name, ledger in self.experts.items():
            _check_known(name, ledger, self.accountant)
        kinds = {(s.dataset, s.unit, s.relation): name for name, s in self._each_spend()}
        if len(kinds) > 1:
            told = "; ".join(
                f"{name!r} protects each {unit} of {dataset} ({relation})"
                for (dataset, unit, relation), name in kinds.items()
            )
            raise DialError(f"the dial needs experts trained on the same data, but {told}")

    def precision(self, names: Group) -> float:
        """Returns the inverse variance of what these experts estimate together, up to a factor.

        The Renyi divergence of order 2 of T steps at rate q and noise multiplier z is nearly
        ``T q^2 / z^2``, and exactly that for rate 1: signal over noise, which adds up where
        independent experts are merged with weights in proportion to it.
        """
        return accounting.divergence(self._mechanisms(names), 2.0)

    def weights(self, names: Group) -> Mapping[str, float]:
        """Returns ``w_i ~ 1 / variance_i``, which keeps the variance of the mean smallest."""
        alone = {name: self.precision((name,)) for name in names}
        total = sum(alone.values())
        return {name: one / total for name, one in alone.items()}

    def epsilon(self, names: Group) -> float:
        """Returns what some experts cost together at the dial's delta; one alone: as it states.

        Never below what one of them states, as in ledgers, for its list of mechanisms may be
        short; but the accountant pld may find less where all of it is listed.
        """
        if names not in self._prices:
            self._prices[names] = self._priced(names)
        return self._prices[names]

    def _priced(self, names: Group) -> float:
        if (stated := self.stated(names)) is not None:
            return stated.epsilon
        kept = [n for n in names if self.accountant == "rdp" or not self.drawable((n,))]
        alone = [self.experts[name].everywhere for name in kept]
        prices = [price.epsilon for price in alone if price is not None]
        return max([self.accounted(self._mechanisms(names)), *prices])

    def drawable(self, names: Group) -> bool:
        """Whether mechanisms account for all that the records of some experts state.

        A draw is priced by mechanisms alone: a release of which some may be missing is in none.
        """
        return all(
            spend.epsilon <= 1.01 * _known(spend)  # rounded when it was written down
            for name in names
            for spend in self.experts[name].spends
        )

    def stated(self, names: Group) -> Price | None:
        """Returns what the record of one expert promises, where that holds at the list's delta."""
        price = self.experts[names[0]].everywhere
        fits = len(names) == 1 and price is not None and price.delta <= self.delta
        return price if fits else None

    def accounted(self, mechanisms: Sequence[Mechanism]) -> float:
        """Returns the epsilon of some mechanisms at the list's delta."""
        relation = self._spends[0].relation
        return accounting.epsilon(
            mechanisms, self.delta, accountant=self.accountant, relation=relation
        )

    def holds(self, mechanisms: Sequence[Mechanism], epsilon: float) -> bool:
        """Returns whether they cost no more."""
        relation = self._spends[0].relation
        return accounting.holds(
            mechanisms, epsilon, self.delta, accountant=self.accountant, relation=relation
        )

    def selected(self, options: Sequence[Group], chances: tuple[float, ...]) -> RandomSelection:
        """Returns the draw of one of some groups."""
        ledgers = [self._joined(names) for names in options]
        return RandomSelection(
            chances,
            tuple(map(self._mechanisms, options)),
            tuple(tuple(str(s.release) for s in ledger.spends) for ledger in ledgers),
        )

    def spend(
        self, price: Price, options: Sequence[Group], chances: tuple[float, ...]
    ) -> PrivacySpend:
        """Returns the entry of a ledger; a draw is a release of its own, a merge that of all."""
        one = self._spends[0]
        selected = self.selected(options, chances)
        drawn = len(options) > 1
        listed = " or ".join(
            f"{' + '.join(names)}" + (f" with probability {chance:.3g}" if drawn else "")
            for names, chance in zip(options, chances, strict=True)
        )
        identity = secrets.token_hex(8) if drawn else " + ".join(sorted(selected.releases[0]))
        return PrivacySpend(
            one.dataset,
            price.epsilon,
            price.delta,
            f"dp-accounting {self.accountant}",
            accounting.library_version(),
            unit=one.unit,
            relation=one.relation,
            mechanisms=(selected,),
            group_size=max(spend.group_size for spend in self._spends),
            what=f"{'random selection' if drawn else 'merge'} of {listed}",
            disjoint_from=tuple(sorted({n for s in self._spends for n in s.disjoint_from})),
            release=f"dial {identity}",
        )

    def _joined(self, names: Group) -> Ledger:
        """Returns the ledger of some experts, what they share once."""
        ledger = Ledger()
        for name in names:
            ledger = ledger.joined(self.experts[name])
        return ledger

    def _mechanisms(self, names: Group) -> tuple[Mechanism, ...]:
        return tuple(one for s in self._joined(names).spends for one in s.mechanisms or ())

    def _each_spend(self) -> list[tuple[str, PrivacySpend]]:
        return [(name, s) for name, ledger in self.experts.items() for s in ledger.spends]

    @cached_property
    def _spends(self) -> list[PrivacySpend]:
        return [spend for _, spend in self._each_spend()]

    @cached_property
    def _prices(self) -> dict[Group, float]:
        return {}


def _check_known(name: str, ledger: Ledger, accountant: Accountant) -> None:
    """Raises DialError unless the record says of everything what was run."""
    if ledger.unrecorded:
        raise DialError(
            f"expert {name!r} promises nothing: {', '.join(ledger.unrecorded)} has no privacy "
            "record; train it with privacy, or leave it out of the dial"
        )
    if not any(spend.epsilon for spend in ledger.spends):
        raise DialError(
            f"expert {name!r} spent nothing on private data, so that there is nothing to dial: "
            "leave it out"
        )
    for spend in ledger.spends:
        what = f"expert {name!r}: {spend.what} on {spend.dataset}"
        if spend.release is None:
            raise DialError(f"{what} has no identity of its release: read it with its weights'")
        if spend.mechanisms is None:
            raise DialError(f"{what} has mechanisms that are not known: leave it out of the dial")
        if accountant == "pld" and any(
            isinstance(one, DiscreteGaussianMechanism) for one in leaves(spend.mechanisms)
        ):
            raise DialError(f"{what} has discrete noise, which only the accountant rdp bounds")
        known = _known(spend)
        if spend.epsilon > 1.1 * known + 0.1:  # accountants differ by less
            raise DialError(
                f"{what} states epsilon={spend.epsilon:.4g}, but the mechanisms that it lists "
                f"cost {known:.4g} only: some are missing, so leave it out of the dial"
            )


def _known(spend: PrivacySpend) -> float:
    """Returns what the mechanisms of a spend cost at its delta."""
    return accounting.epsilon(spend.mechanisms or (), spend.delta, relation=spend.relation)
