"""The ledger of a merged model: all that was spent on private data, and what it promises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.mechanisms import PrivacyRecordError, check_keys, covered_releases
from merging.checkpoints.privacy_record import (
    PrivacyRecord,
    PrivacySpend,
    read_record,
    sealed,
    unsealed,
    weights_sha256,
)
from merging.plan import Plan
from merging.privacy.composition import Guarantee, Price, guarantee, largest
from merging.privacy.metric_words import metric_in_words
from merging.privacy.words import (
    price_in_words,
    promise_in_words,
    rounding_in_words,
    selections_in_words,
)
from merging.statistics_files import records_of
from merging.weight_names import is_adapter, made_here


@dataclass(frozen=True)
class Ledger:
    """What a model's private data cost, expert by expert and search by search.

    A merge is post-processing of its experts: it costs nothing beyond what they cost together.

    Args:
        spends: every release that went in, each once.
        unrecorded: what went in without a record; where there is any, the model is not private.
        words: sentences as an earlier ledger of the same model put them; empty: as composed now.
        notes: sentences on what is taken for granted, or lies beside the promise.
    """

    spends: tuple[PrivacySpend, ...] = ()
    unrecorded: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of_base(cls, directory: Path, what: str = "the base") -> Ledger:
        """Returns the ledger of a model that others are merged, trained or copied from.

        Without a record it is taken to be public, which the notes say, unless a training or a
        merge of evomerge wrote it: then it is unrecorded, as `what`.

        Raises:
            PrivacyRecordError: its record is malformed, edited, or of other weights; it is an
                adapter, which inherits from a base of its own.
        """
        if is_adapter(directory):
            raise PrivacyRecordError(
                f"{directory} is an adapter, nothing to start from: merge it into its base first"
            )
        if (record := read_record(directory)) is not None:
            return cls().read(record, what, weights_sha256(directory))
        if made_here(directory):
            return cls().read(None, what, None)
        return cls(notes=(f"{what[0].upper()}{what[1:]} is taken to be public.",))

    @classmethod
    def of_experts(cls, pool: ExpertPool, names: Iterable[str]) -> Ledger:
        """Returns the ledger of a pool's base and some of its experts; raises as `of`."""
        ledger = cls.of_base(pool.base.path)
        for name in names:
            expert = pool.experts[name]
            ledger = ledger.read(expert.privacy(), f"expert {name!r}", expert.sha256)
        return ledger

    @classmethod
    def of(cls, pool: ExpertPool, plan: Plan, *, searched: bool) -> Ledger:
        """Returns the ledger of a merge; reads the experts' records.

        Args:
            plan: what was done with them; of a search any of its plans.
            searched: whether the plan was searched for. Then every expert of the pool counts, as
                the scores of all of them steered the search; else those that the plan reads.

        Raises:
            PrivacyRecordError: a record is malformed, edited, or of other weights; names it.
        """
        counted = pool.expert_names if searched else experts_of(plan, pool.expert_names)
        ledger = cls.of_experts(pool, counted)
        for directory in statistics_of(plan):
            files = records_of(directory)
            if not files or any(record is None for _, record in files.values()):
                ledger = ledger.read(None, f"the statistics in {directory}", None)
            for sha256, record in files.values():
                if record is not None:
                    ledger = ledger.read(record, f"the statistics in {directory}", sha256)
        return ledger

    @classmethod
    def rebuilt(cls, content: Any, pool: ExpertPool, plan: Plan) -> Ledger:
        """Returns the ledger in a recipe, compared with what its experts' records say now.

        `content` is as `describe` wrote it; None: older than ledgers, so all experts count.

        Raises:
            PrivacyRecordError: as `from_description` and `of` raise; or a record of an expert
                lists what the recipe does not.
        """
        if content is None:
            return cls.of(pool, plan, searched=True)
        ledger = cls.from_description(content)
        for what in ledger.lacking(cls.of(pool, plan, searched=False)):
            raise PrivacyRecordError(
                f"the recipe's ledger lacks {what}, which the record of an expert lists now: "
                "merge again instead of rebuilding"
            )
        return ledger

    def lacking(self, other: Ledger) -> list[str]:
        """Returns in words what the records of `other`, that went in here, list and this does not.

        That a whole record is gone says nothing new of the same weights.
        """
        spent = self.beyond(other).spends
        return [
            *(
                f"{spend.what} on data set {spend.dataset!r}"
                for spend in spent
                if spend.release is not None and spend not in self.spends
            ),
            *(name for name in other._inside if name not in self.unrecorded),
        ]

    def read(self, record: PrivacyRecord | None, what: str, identity: str | None) -> Ledger:
        """Returns the ledger with all that `record` lists; None: `what` has no record.

        With the `identity` of its content it counts once however often it is read; without, spends
        that have no release of their own count every time.
        """
        if record is None:
            return replace(self, unrecorded=_each_once([*self.unrecorded, what]), words=())
        named = [
            replace(spend, release=spend.release or (identity and f"{identity}/{i}"))
            for i, spend in enumerate(record.spends)
        ]
        inner = [f"{name} in {what}" for name in record.unrecorded]
        ledger = replace(self, unrecorded=_each_once([*self.unrecorded, *inner]), words=())
        return ledger.add(*named)

    def add(self, *spends: PrivacySpend) -> Ledger:
        """Returns the ledger with more spends; one with a release that it lists counts once."""
        known = {spend for spend in self.spends if spend.release is not None}
        fresh = []
        for spend in spends:
            if spend.release is None or spend not in known:
                fresh.append(spend)
                known |= {spend} if spend.release is not None else set()
        return replace(self, spends=(*self.spends, *fresh), words=())

    def joined(self, other: Ledger) -> Ledger:
        """Returns the ledger of what both went into; a release that both list counts once."""
        unrecorded = _each_once([*self.unrecorded, *other.unrecorded])
        notes = _each_once([*self.notes, *other.notes])
        return replace(self, unrecorded=unrecorded, words=(), notes=notes).add(*other.spends)

    def beyond(self, other: Ledger) -> Ledger:
        """Returns `other`, of what went into this model, without what a draw here counted in."""
        covered = {r for spend in self.spends for r in covered_releases(spend.mechanisms or ())}
        return replace(other, spends=tuple(s for s in other.spends if s.release not in covered))

    @property
    def _inside(self) -> list[str]:
        """What the records that were read name as unrecorded in turn."""
        wholes = (" in expert ", " in the base", " in the statistics ")
        return [name for name in self.unrecorded if any(whole in name for whole in wholes)]

    @property
    def private(self) -> bool:
        """Whether all that went in has a record, and all records compose to a promise."""
        known = self.guarantees.values()
        return not self.unrecorded and all(g is not None and not g.price.vacuous for g in known)

    @cached_property
    def guarantees(self) -> Mapping[str, Guarantee | None]:
        """Data set -> what its units are promised, as far as the record goes.

        None: the spends that count for it protect different units.
        """
        datasets = sorted({spend.dataset for spend in self.spends})
        return {name: guarantee(name, self.spends) for name in datasets}

    @property
    def everywhere(self) -> Price | None:
        """What holds for a unit of any of the data sets; None: some are promised nothing."""
        prices = [promise.price for promise in self.guarantees.values() if promise is not None]
        return largest(prices) if prices and len(prices) == len(self.guarantees) else None

    def sentences(self) -> list[str]:
        """Returns the ledger in words, the verdict first."""
        return list(self.words) or list(_sentences(self))

    def record(self) -> PrivacyRecord:
        """Returns what belongs beside the weights of the merged model."""
        return PrivacyRecord(self.spends, self.unrecorded)

    def describe(self) -> dict[str, Any]:
        """Returns the ledger as JSON for recipes and summaries, readable by `from_description`."""
        content = {
            "private": self.private,
            "words": self.sentences(),
            "data_sets": {
                name: None if promise is None else promise.to_json()
                for name, promise in self.guarantees.items()
            },
            **self.record().to_json(),
        }
        return sealed(content)

    @classmethod
    def from_description(cls, content: Any) -> Ledger:
        """Returns what `describe` wrote, in its words; raises PrivacyRecordError if edited."""
        inside = unsealed(content)
        check_keys("ledger", inside, ["private", "words", "data_sets", "spends", "unrecorded"])
        record = PrivacyRecord.from_json({key: inside[key] for key in ("spends", "unrecorded")})
        return cls(record.spends, record.unrecorded, tuple(map(str, inside["words"])))


def experts_of(plan: Plan, pool: Iterable[str]) -> tuple[str, ...]:
    """Returns the experts whose data a merge may show, in the order of the pool.

    An expert with a coefficient of zero counts: what it holds may have chosen that zero, and
    methods that vote or sort read it. Left out are only experts that the plan does not name.
    Paths, lineages and plans of other kinds read the whole pool: their noise is shaped by it.
    """
    named = plan.named_experts
    return tuple(name for name in pool if named is None or name in named)


def statistics_of(plan: Plan) -> list[Path]:
    """Returns the directories of statistics that the methods of a plan read, each once."""
    return list(map(Path, dict.fromkeys(_statistics(plan.describe()))))


def _statistics(description: Any) -> Iterator[str]:
    if isinstance(description, Mapping):
        if "_target_" in description and isinstance(description.get("statistics"), str):
            yield description["statistics"]
        for value in description.values():
            yield from _statistics(value)
    elif isinstance(description, list):
        for value in description:
            yield from _statistics(value)


def _sentences(ledger: Ledger) -> Iterator[str]:
    if ledger.unrecorded:
        listed = ", ".join(ledger.unrecorded)
        verb, those = ("has", "it") if len(ledger.unrecorded) == 1 else ("have", "them")
        yield (
            f"Not private: {listed} {verb} no privacy record, so nothing is guaranteed about the "
            f"data behind {those}."
        )
    for name, promise in ledger.guarantees.items():
        if promise is None:
            yield f"Not private: data set {name} is protected in units that do not compose."
    yield from metric_in_words(ledger.spends)
    noised = {spend.dataset for spend in ledger.spends if spend.metric is not None}
    where = ", for records that lie in no data without a record" if ledger.unrecorded else ""
    for name, promise in ledger.guarantees.items():
        if promise is not None and name not in noised:
            yield f"{promise_in_words(promise)}{where}."
    if ledger.everywhere is not None and len(ledger.guarantees) > 1 and not noised:
        yield f"{price_in_words(ledger.everywhere)} at most for any record of these data sets."
    yield from selections_in_words(ledger.spends)
    yield from rounding_in_words(ledger.spends)
    if ledger.spends:
        yield (
            "This holds for the data sets named here, whose sizes are public, and says nothing of "
            "any other data, such as items that models were scored on."
        )
    elif not ledger.unrecorded:
        yield "No private data went into it, by the records of its experts."
    if ledger.spends or not ledger.unrecorded:
        yield from ledger.notes


def _each_once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
