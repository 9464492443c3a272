"""The models of a deduplication: what may lend blocks or take them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import PrivacySpend, read_record
from merging.deduplication.blocking import ModelBlocks, l1_distances
from merging.privacy.deduplicated import deduplicated
from merging.privacy.ledger import Ledger
from merging.weights import CheckpointError
from search.deduplication.bases import (
    Distance,
    Member,
    cross_bases,
    fair_order,
    greedy_bases,
    multi_bases,
)


@dataclass(frozen=True, eq=False)
class DedupModel:
    """One model by its name.

    Args:
        source: directory, Hugging Face id or ``zoo:NAME``.
        ledger: what it has cost so far.
    """

    name: str
    source: str
    checkpoint: Checkpoint
    blocks: ModelBlocks
    ledger: Ledger

    @classmethod
    def open(
        cls,
        name: str,
        source: str,
        block_size: int,
        *,
        base: bool = False,
        trust_remote_code: bool = False,
    ) -> DedupModel:
        """Returns the model; reads headers and its privacy record, no weights.

        Args:
            base: it was named as one: without a record it is taken to be public, as the base of
                a merge is; see `Ledger.of_base`.

        Raises:
            CheckpointError: it cannot be opened, or transformers converts its tensors.
            ValueError: it has no blocks of this size.
        """
        checkpoint = Checkpoint.open(source, trust_remote_code=trust_remote_code)
        if checkpoint.file_names is None:
            raise CheckpointError(
                f"{name} ({source}): transformers converts its tensors when it loads them, so "
                "that blocks of its files are none of the model's: leave it out"
            )
        what = f"model {name!r}"
        if base:
            ledger = Ledger.of_base(checkpoint.path, what)
        else:
            ledger = Ledger().read(read_record(checkpoint.path), what, checkpoint.sha256)
        try:
            return cls(name, source, checkpoint, ModelBlocks(checkpoint, block_size), ledger)
        except ValueError as error:
            raise ValueError(f"{name} ({source}): {error}") from None

    @property
    def epsilon(self) -> float:
        """What any record of its data sets is promised; 0: nothing is known, or nothing spent."""
        return promised(self.ledger)

    @property
    def member(self) -> Member:
        """What the choice of bases knows of it; any price that is a number is admissible."""
        cluster = self.checkpoint.architecture.__name__, frozenset(self.ledger.guarantees)
        return Member(self.name, cluster, self.epsilon, sys.float_info.max)


def promised(ledger: Ledger) -> float:
    """Returns epsilon of a ledger; 0 where nothing is promised or nothing was spent."""
    everywhere = ledger.everywhere
    return everywhere.epsilon if ledger.private and everywhere is not None else 0.0


@dataclass(frozen=True)
class Taking:
    """A target takes blocks of these bases."""

    target: str
    bases: tuple[str, ...]


def assign(
    models: Mapping[str, DedupModel],
    *,
    bases: Sequence[str],
    plan: str,
    ceilings: Mapping[str, float],
    validation: Sequence[PrivacySpend] = (),
) -> list[Taking]:
    """Returns who takes blocks of whom, in the order in which it is to be done.

    Args:
        bases: those that lend to all others that stay under their ceilings; none: `plan` chooses.
        plan: ``greedy``, or ``multi`` or ``cross`` of the paper, which know no ceilings.
        ceilings: most that a model may come to, its checks included.
        validation: what a target's checks cost.

    Raises:
        ValueError: a name that no model has.
    """
    for name in (*bases, *ceilings):
        if name not in models:
            raise ValueError(f"no model is called {name!r}: expected {', '.join(models)}")
    members = {
        name: replace(one.member, ceiling=ceilings.get(name, one.member.ceiling))
        for name, one in models.items()
    }

    def cost(target: Member, *lenders: Member) -> float:
        own = models[target.name].ledger
        joint = deduplicated(own, [models[one.name].ledger for one in lenders], validation)
        return math.inf if own.private and not joint.private else promised(joint)

    if bases:
        lend = [members[name] for name in bases]
        return [
            Taking(one.name, tuple(bases))
            for one in fair_order(list(members.values()))
            if one not in lend and cost(one, *lend) <= one.ceiling
        ]
    everyone = list(members.values())
    if plan == "greedy":
        found = greedy_bases(everyone, cost, _distance(models))
    else:
        found = {"multi": multi_bases, "cross": cross_bases}[plan](everyone)
    return [Taking(one.target, (one.base,)) for one in found]


def fair(plan: Sequence[Taking], models: Mapping[str, DedupModel]) -> list[Taking]:
    """Returns the same by increasing epsilon of the targets."""
    order = [one.name for one in fair_order([model.member for model in models.values()])]
    return sorted(plan, key=lambda one: order.index(one.target))


def _distance(models: Mapping[str, DedupModel]) -> Distance:
    """Returns the mean distance of a target's blocks to the nearest of a base."""

    @cache
    def mean(target: str, base: str) -> float:
        distances = l1_distances(models[target].blocks, models[base].blocks)
        return float(distances.min(1).values.mean())

    return lambda target, base: mean(target.name, base.name)
