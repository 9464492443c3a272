"""The privacy dial: merges at an epsilon between those of experts trained on the same data.

Two ways, after Differentially Private Model Merging (Yin, Zaheer, Li 2026, arXiv 2604.20985, of
which only abstract and introduction were at hand: the accounting is derived here):

- **Random selection** gives out one whole expert. With the draw in view the Renyi divergences D_i
  of the experts mix as ``exp((a - 1) D) = sum_i p_i exp((a - 1) D_i)`` and their privacy profiles
  as ``delta(epsilon) = sum_i p_i delta_i(epsilon)``; not telling the draw is post-processing. At
  the usual delta the less private expert gets a tiny probability: of ``delta / delta_i(epsilon)``.
- **Linear combination** of experts from independent runs of DP-SGD is post-processing of all that
  take part, and costs what they cost together, more than each of them: at epsilon 3 it merges
  experts at 1 and 2. That noise averages out, so that to mix a little of a noisier expert into
  one at epsilon 8 costs less than 8, holds for Gaussian noise on one and the same sum, as in
  private means. Steps of DP-SGD start where the noise of their own run led it, so that the sums
  differ; nothing of the kind is counted here.

Probabilities and weights come from the records alone, which no private record changed. Utilities
must not be computed from the experts' private data either, or have a ledger of their own.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, combinations
from typing import Literal, TypeAlias

from merging.checkpoints.experts import ExpertPool
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

Kind: TypeAlias = Literal["best", "selection", "combination"]
Utility: TypeAlias = Callable[[tuple[str, ...]], float]
"""Experts merged with the dial's weights -> what the merge is worth, higher is better."""

_MOST = 8  # experts: `best` compares 4^n / 4 draws at most
_LOTS = 2**32  # probabilities are multiples of 1 / _LOTS, which a draw meets exactly


class DialError(PrivacyRecordError):
    """Experts that cannot be dialled, or not to this epsilon; says why and what helps."""


@dataclass(frozen=True)
class Setting:
    """What a dial gives out: a merge drawn from `options`.

    Args:
        options: expert -> weight in a linear merge, summing to 1, of each option.
        probabilities: of the options; summing to 1.
        price: what the units of the data set are promised.
        utility: the mean over the draw.
        spends: what ledgers list for it.
    """

    options: tuple[Mapping[str, float], ...]
    probabilities: tuple[float, ...]
    price: Price
    utility: float
    spends: tuple[PrivacySpend, ...]

    def draw(self) -> Mapping[str, float]:
        """Returns expert -> weight of one option, drawn from the operating system's randomness.

        The price is that of one draw: who draws again, and keeps what pleases, pays once for each.
        """
        place = secrets.randbelow(_LOTS) / _LOTS
        edges = accumulate(self.probabilities)
        return next(o for o, edge in zip(self.options, edges, strict=True) if place < edge)


@dataclass(frozen=True)
class Dial:
    """Experts whose records know what ran on one data set.

    Args:
        experts: name -> what the expert alone cost.
        delta: of every guarantee; None: the largest that an expert states.
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
            raise DialError(f"the dial's delta must be in (0, 1), got {self.delta}")
        for name, ledger in self.experts.items():
            _check_known(name, ledger, self.accountant)
        kinds = {(s.dataset, s.unit, s.relation): name for name, s in self._each_spend()}
        if len(kinds) > 1:
            told = "; ".join(
                f"{name!r} protects each {unit} of {dataset} ({relation})"
                for (dataset, unit, relation), name in kinds.items()
            )
            raise DialError(f"the dial needs experts trained on the same data, but {told}")

    @classmethod
    def of(
        cls, pool: ExpertPool, delta: float | None = None, accountant: Accountant = "rdp"
    ) -> "Dial":
        """Returns the dial of a pool's experts, by the records beside their weights.

        Args:
            delta: None: the largest that an expert states.

        Raises:
            DialError: as the class does.
            PrivacyRecordError: a record is malformed, edited, or of other weights.
        """
        ledgers = {
            name: Ledger().read(expert.privacy(), f"expert {name!r}", expert.sha256)
            for name, expert in pool.experts.items()
        }
        stated = [spend.delta for ledger in ledgers.values() for spend in ledger.spends]
        return cls(ledgers, max(stated, default=0.5) if delta is None else delta, accountant)

    def turn(self, kind: Kind, epsilon: float, utility: Utility | None = None) -> Setting:
        """Returns `best`, `selection` or `combination`, as `kind` says."""
        turned: Setting = getattr(self, kind)(epsilon, utility)
        return turned

    def best(self, epsilon: float, utility: Utility | None = None) -> Setting:
        """Returns the draw between two merges, or the merge, of the largest mean utility.

        It is never worse than `combination`, whose args and errors it has. A chance of less than
        one in a hundred is not worth that somebody may get the less private merge.
        """
        return self._drawn_of(self._groups, epsilon, utility or self.precision, _LOTS // 100)

    def combination(self, epsilon: float, utility: Utility | None = None) -> Setting:
        """Returns the best merge of some experts that cost no more than `epsilon` together.

        Args:
            epsilon: the largest price, at the dial's delta.
            utility: None: `precision`.

        Raises:
            DialError: no expert costs as little.
        """
        return self._certain_of(self._groups, epsilon, utility or self.precision)

    def selection(self, epsilon: float, utility: Utility | None = None) -> Setting:
        """Returns the draw between two experts, or the expert, of the largest mean utility.

        Args and errors are those of `combination`.
        """
        alone = [(name,) for name in self.experts]
        return self._drawn_of(alone, epsilon, utility or self.precision, 1)

    def precision(self, names: tuple[str, ...]) -> float:
        """Returns the inverse variance of what these experts estimate together, up to a factor.

        The Renyi divergence of order 2 of T steps at rate q and noise multiplier z is nearly
        ``T q^2 / z^2``, and exactly that for rate 1: signal over noise, which adds up where
        independent experts are merged with weights in proportion to it.
        """
        return sum(self._precisions[name] for name in names)

    def epsilon(self, names: tuple[str, ...]) -> float:
        """Returns what some experts cost together at the dial's delta; one alone: as it states."""
        if names not in self._prices:
            self._prices[names] = self._priced(names)
        return self._prices[names]

    def _priced(self, names: tuple[str, ...]) -> float:
        stated = self._stated(names)
        if stated is not None:
            return stated.epsilon
        return self._accounted(self._mechanisms(names))

    def _stated(self, names: tuple[str, ...]) -> Price | None:
        """Returns what the record of one expert promises, where that holds at the dial's delta."""
        price = self.experts[names[0]].everywhere
        fits = len(names) == 1 and price is not None and price.delta <= self.delta
        return price if fits else None

    def _accounted(self, mechanisms: Sequence[Mechanism]) -> float:
        relation = self._spends[0].relation
        return accounting.epsilon(
            mechanisms, self.delta, accountant=self.accountant, relation=relation
        )

    def _holds(self, epsilon: float, one: Mechanism) -> bool:
        relation = self._spends[0].relation
        return accounting.holds(
            [one], epsilon, self.delta, accountant=self.accountant, relation=relation
        )

    @property
    def _groups(self) -> list[tuple[str, ...]]:
        sizes = range(1, len(self.experts) + 1)
        return list(chain.from_iterable(combinations(self.experts, size) for size in sizes))

    def _allowed(self, groups: Sequence[tuple[str, ...]], epsilon: float) -> list[tuple[str, ...]]:
        allowed = [names for names in groups if self.epsilon(names) <= epsilon]
        if not allowed:
            least = min(self.epsilon((name,)) for name in self.experts)
            raise DialError(
                f"no expert costs epsilon={epsilon:g} or less at delta={self.delta:g}: the most "
                f"private one costs {least:.4g}; ask for that, or train one with more noise"
            )
        return allowed

    def _certain_of(
        self, groups: Sequence[tuple[str, ...]], epsilon: float, utility: Utility
    ) -> Setting:
        """Returns the group of the highest utility among those that cost `epsilon` at most."""
        best = max(self._allowed(groups, epsilon), key=utility)
        return self._certain(best, utility(best))

    def _drawn_of(
        self, groups: Sequence[tuple[str, ...]], epsilon: float, utility: Utility, least: int
    ) -> Setting:
        """Returns the best draw of a group that is not allowed, with `least` lots, or one that is.

        Two are enough: a mean is to be maximised under one bound on a mean (of the profiles, or
        of the moments at an order), and a linear program has a solution with two parts.
        """
        worth = {names: utility(names) for names in groups}
        allowed = sorted(self._allowed(groups, epsilon), key=worth.__getitem__, reverse=True)
        others = [names for names in groups if self.epsilon(names) > epsilon]
        best, drawn = worth[allowed[0]], None
        for low in allowed:
            for high in others:
                gain = worth[high] - worth[low]
                needed = (best - worth[low]) / gain * _LOTS if gain > 0 else math.inf
                if needed < _LOTS - 1:
                    lots = self._lots(low, high, epsilon, max(int(needed) + 1, least))
                    if lots:
                        best, drawn = worth[low] + gain * lots / _LOTS, (low, high, lots)
        return (
            self._certain(allowed[0], best)
            if drawn is None
            else self._drawn(*drawn, epsilon, best)
        )

    def _certain(self, names: tuple[str, ...], utility: float) -> Setting:
        price = self._stated(names)
        if price is not None:
            spends = self.experts[names[0]].spends
        else:
            price = Price(self.epsilon(names), self.delta)
            spends = (self._spend(price, (names,), (1.0,)),)
        return Setting((self._weights(names),), (1.0,), price, utility, spends)

    def _drawn(
        self,
        low: tuple[str, ...],
        high: tuple[str, ...],
        lots: int,
        epsilon: float,
        utility: float,
    ) -> Setting:
        options, chances = (low, high), (1 - lots / _LOTS, lots / _LOTS)
        found = self._accounted([self._selected(options, chances)])
        # never below what a part states, nor above what `_lots` has found to hold
        price = Price(min(max(found, self.epsilon(low)), epsilon), self.delta)
        spends = (self._spend(price, options, chances),)
        return Setting(tuple(map(self._weights, options)), chances, price, utility, spends)

    def _lots(
        self, low: tuple[str, ...], high: tuple[str, ...], epsilon: float, least: int
    ) -> int:
        """Returns in `_LOTS` the largest probability that `high` can have; 0: not `least`."""
        allowed, refused, lots = 0, _LOTS, least
        while refused - allowed > 1:
            chances = (1 - lots / _LOTS, lots / _LOTS)
            if self._holds(epsilon, self._selected((low, high), chances)):
                allowed = lots
            else:
                refused = lots
            if allowed < least:
                return 0
            lots = (allowed + refused) // 2
        return allowed

    def _selected(
        self, options: Sequence[tuple[str, ...]], chances: tuple[float, ...]
    ) -> RandomSelection:
        ledgers = [self._joined(names) for names in options]
        return RandomSelection(
            chances,
            tuple(map(self._mechanisms, options)),
            tuple(tuple(str(s.release) for s in ledger.spends) for ledger in ledgers),
        )

    def _spend(
        self, price: Price, options: Sequence[tuple[str, ...]], chances: tuple[float, ...]
    ) -> PrivacySpend:
        """Returns the entry of a ledger; a draw is a release of its own, a merge that of all."""
        one = self._spends[0]
        selected = self._selected(options, chances)
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

    def _joined(self, names: tuple[str, ...]) -> Ledger:
        """Returns the ledger of some experts, what they share once."""
        ledger = Ledger()
        for name in names:
            ledger = ledger.joined(self.experts[name])
        return ledger

    def _mechanisms(self, names: tuple[str, ...]) -> tuple[Mechanism, ...]:
        return tuple(one for s in self._joined(names).spends for one in s.mechanisms or ())

    def _weights(self, names: tuple[str, ...]) -> Mapping[str, float]:
        """Returns ``w_i ~ 1 / variance_i``, which keeps the variance of the mean smallest."""
        total = self.precision(names)
        return {name: self._precisions[name] / total for name in names}

    def _each_spend(self) -> list[tuple[str, PrivacySpend]]:
        return [(name, s) for name, ledger in self.experts.items() for s in ledger.spends]

    @cached_property
    def _spends(self) -> list[PrivacySpend]:
        return [spend for _, spend in self._each_spend()]

    @cached_property
    def _precisions(self) -> Mapping[str, float]:
        return {
            name: accounting.divergence(self._mechanisms((name,)), 2.0) for name in self.experts
        }

    @cached_property
    def _prices(self) -> dict[tuple[str, ...], float]:
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
        if spend.mechanisms is None:
            raise DialError(f"{what} has mechanisms that are not known: leave it out of the dial")
        if accountant == "pld" and any(
            isinstance(one, DiscreteGaussianMechanism) for one in leaves(spend.mechanisms)
        ):
            raise DialError(f"{what} has discrete noise, which only the accountant rdp bounds")
        known = accounting.epsilon(spend.mechanisms, spend.delta, relation=spend.relation)
        if spend.epsilon > 1.1 * known + 0.1:  # accountants differ by less
            raise DialError(
                f"{what} states epsilon={spend.epsilon:.4g}, but the mechanisms that it lists "
                f"cost {known:.4g} only: some are missing, so leave it out of the dial"
            )
