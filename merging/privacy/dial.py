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
from itertools import accumulate, chain, combinations
from typing import Literal, TypeAlias

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.accounting import Accountant
from merging.privacy.composition import Price
from merging.privacy.ledger import Ledger
from merging.privacy.price_list import DialError, Group, PriceList
from merging.privacy.words import rounded_up

Kind: TypeAlias = Literal["best", "selection", "combination"]
Utility: TypeAlias = Callable[[Group], float]
"""Experts merged with the dial's weights -> what the merge is worth, higher is better."""

_LOTS = 2**32  # probabilities are multiples of 1 / _LOTS, which a draw meets exactly


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
class Dial(PriceList):
    """Merges of the experts of a price list, by the most that they may cost."""

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

    @property
    def _groups(self) -> list[Group]:
        sizes = range(1, len(self.experts) + 1)
        return list(chain.from_iterable(combinations(self.experts, size) for size in sizes))

    def _allowed(self, groups: Sequence[Group], epsilon: float) -> list[Group]:
        allowed = [names for names in groups if self.epsilon(names) <= epsilon]
        if not allowed:
            least = min(self.epsilon((name,)) for name in self.experts)
            raise DialError(
                f"no expert costs epsilon={epsilon:g} or less at delta={self.delta:g}: the most "
                f"private one costs {rounded_up(least, 4)}; ask for that, or train one with more "
                "noise"
            )
        return allowed

    def _certain_of(self, groups: Sequence[Group], epsilon: float, utility: Utility) -> Setting:
        """Returns the group of the highest utility among those that cost `epsilon` at most."""
        best = max(self._allowed(groups, epsilon), key=utility)
        return self._certain(best, utility(best))

    def _drawn_of(
        self, groups: Sequence[Group], epsilon: float, utility: Utility, least: int
    ) -> Setting:
        """Returns the best draw of a group that is not allowed, with `least` lots, or one that is.

        Two are enough: a mean is to be maximised under one bound on a mean (of the profiles, or
        of the moments at an order), and a linear program has a solution with two parts.
        """
        worth = {names: utility(names) for names in groups}
        allowed = sorted(self._allowed(groups, epsilon), key=worth.__getitem__, reverse=True)
        others = [n for n in groups if self.epsilon(n) > epsilon and self.drawable(n)]
        best, drawn = worth[allowed[0]], None
        for low in filter(self.drawable, allowed):
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

    def _certain(self, names: Group, utility: float) -> Setting:
        price = self.stated(names)
        if price is not None:
            spends = self.experts[names[0]].spends
        else:
            price = Price(self.epsilon(names), self.delta)
            spends = (self.spend(price, (names,), (1.0,)),)
        return Setting((self.weights(names),), (1.0,), price, utility, spends)

    def _drawn(
        self,
        low: Group,
        high: Group,
        lots: int,
        epsilon: float,
        utility: float,
    ) -> Setting:
        options, chances = (low, high), (1 - lots / _LOTS, lots / _LOTS)
        found = self.accounted([self.selected(options, chances)])
        # never below what a part states, nor above what `_lots` has found to hold
        price = Price(min(max(found, self.epsilon(low)), epsilon), self.delta)
        spends = (self.spend(price, options, chances),)
        return Setting(tuple(map(self.weights, options)), chances, price, utility, spends)

    def _lots(self, low: Group, high: Group, epsilon: float, least: int) -> int:
        """Returns in `_LOTS` the largest probability that `high` can have; 0: not `least`."""
        allowed, refused, lots = 0, _LOTS, least
        while refused - allowed > 1:
            chances = (1 - lots / _LOTS, lots / _LOTS)
            if self.holds([self.selected((low, high), chances)], epsilon):
                allowed = lots
            else:
                refused = lots
            if allowed < least:
                return 0
            lots = (allowed + refused) // 2
        return allowed
