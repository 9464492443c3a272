"""The models of a deduplication: what may lend blocks or take them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import PrivacySpend, read_record
from merging.deduplication.blocking import ModelBlocks
from merging.privacy.deduplicated import deduplicated
from merging.privacy.ledger import Ledger
from merging.weights import CheckpointError
from search.deduplication.bases import (
    Assignment,
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
        """What any record of its data sets is promised; see `promised`."""
        return promised(self.ledger)

    def member(self, ceiling: float | None) -> Member:
        """Returns what the choice of bases knows of it: nothing that follows from its weights.

        Args:
            ceiling: None: any, but a promise that it has must not be lost.
        """
        cluster = self.checkpoint.architecture.__name__, frozenset(self.ledger.guarantees)
        if ceiling is None:
            ceiling = sys.float_info.max if math.isfinite(self.epsilon) else math.inf
        return Member(self.name, cluster, self.epsilon, ceiling, len(self.blocks))


def promised(ledger: Ledger) -> float:
    """Returns epsilon of a ledger; 0: nothing was spent; infinite: nothing is promised."""
    if not ledger.private:
        return math.inf
    return 0.0 if ledger.everywhere is None else ledger.everywhere.epsilon


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
    fair: bool = False,
    checks: Callable[[str], Sequence[PrivacySpend]] = lambda _: (),
) -> list[Taking]:
    """Returns who takes blocks of whom, in the order in which it is to be done.

    Args:
        bases: those that lend to all others that stay under their ceilings; none: `plan` chooses.
        plan: ``greedy``, or ``multi`` or ``cross`` of the paper, which know no ceilings.
        ceilings: most that a model may come to, by all that its result follows from.
        fair: by increasing epsilon of the targets; the result of each follows from the one before.
        checks: what those of a target cost.

    Raises:
        ValueError: a name that no model has, or options that exclude each other.
    """
    _check(models, bases, plan, ceilings, fair)
    free = not bases and plan != "greedy"
    members = {n: one.member(math.inf if free else ceilings.get(n)) for n, one in models.items()}

    def spent(target: str, lenders: Sequence[str], *before: Ledger) -> Ledger:
        others = [*(models[name].ledger for name in lenders), *before]
        return deduplicated(models[target].ledger, others, checks(target))

    def cost(target: str, base: str) -> float:
        return promised(spent(target, [base]))

    everyone = fair_order(list(members.values()))
    if bases:
        found = [Taking(one.name, tuple(bases)) for one in everyone if one.name not in bases]
    else:
        plans: Mapping[str, Callable[[Sequence[Member]], Sequence[Assignment]]] = {
            "greedy": partial(greedy_bases, cost=lambda one, base: cost(one.name, base.name)),
            "multi": multi_bases,
            "cross": cross_bases,
        }
        found = [Taking(one.target, (one.base,)) for one in plans[plan](everyone)]
    if fair:
        order = [one.name for one in everyone]
        found.sort(key=lambda one: order.index(one.target))
    admissible, before = list[Taking](), Ledger()
    for one in found:
        ledger = spent(one.target, one.bases, before)
        if promised(ledger) <= members[one.target].ceiling:
            admissible.append(one)
            before = ledger if fair else before
    return admissible


def _check(
    models: Collection[str],
    bases: Sequence[str],
    plan: str,
    ceilings: Collection[str],
    fair: bool,
) -> None:
    for name in (*bases, *ceilings):
        if name not in models:
            raise ValueError(f"no model is called {name!r}: expected {', '.join(models)}")
    if bases or plan == "greedy":
        return
    if ceilings:
        raise ValueError(f"plan={plan} knows no ceilings: choose plan=greedy or bases=[NAME]")
    if fair and plan == "cross":
        raise ValueError("plan=cross has an order of its own: choose fair=false or another plan")
