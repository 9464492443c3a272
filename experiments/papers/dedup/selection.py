"""Base selection: ours against the two plans of the published code, on one pool."""

from collections.abc import Collection, Sequence
from typing import Any

from experiments.papers.dedup.cells import Pair, Target, run_way
from experiments.papers.dedup.ways import DedupSetting, Way
from merging.deduplication.substitution import Substitution, cluster_ratio
from merging.privacy.deduplicated import deduplicated
from merging.privacy.ledger import Ledger
from search.deduplication.bases import (
    Assignment,
    Member,
    cross_bases,
    greedy_bases,
    multi_bases,
)

_CEILING = 1e9  # no target is refused: what is compared is the price


def selection_table(setting: DedupSetting, pool: str) -> dict[str, Any]:
    """Returns for every plan its assignments, overall ratio and the sum of epsilon increases.

    Members are the experts of the part that most are trained on.
    """
    spec = setting.pools[pool]
    parts = [expert.part for expert in spec.experts.values()]
    part = max(set(parts), key=parts.count)
    names = [name for name, expert in spec.experts.items() if expert.part == part]
    targets = {name: Target(setting, pool, name) for name in names}

    def cost(target: Member, base: Member) -> float:
        return _added(deduplicated(targets[target.name].ledger, [targets[base.name].ledger]))

    members = [Member(name, part, _added(one.ledger), _CEILING) for name, one in targets.items()]
    pairs: dict[tuple[str, str], Pair] = {}

    def pair(target: str, base: str) -> Pair:
        if (target, base) not in pairs:
            pairs[target, base] = Pair.of(targets[target], targets[base])
        return pairs[target, base]

    plans = {
        "ours": greedy_bases(members, cost),
        "multi": multi_bases(members),
        "cross": cross_bases(members),
    }
    return {
        "members": names,
        "plans": {plan: _run(setting, chosen, targets, pair) for plan, chosen in plans.items()},
    }


def _run(
    setting: DedupSetting,
    plan: Sequence[Assignment],
    targets: dict[str, Target],
    pair: Any,
) -> dict[str, Any]:
    done: dict[str, Substitution] = {}
    spent: dict[str, Ledger] = {}
    rows = []
    for one in plan:
        keep = _lent(one.target, plan, done)
        takers = [spent[other.target] for other in plan if _took(other, one.target, done)]
        found, figures = run_way(
            pair(one.target, one.base), Way("dred"), setting, keep=keep, others=takers
        )
        done[one.target] = found
        own = targets[one.target].ledger
        spent[one.target] = deduplicated(own, [targets[one.base].ledger, *takers])
        increase = _added(spent[one.target]) - _added(own)
        rows.append({"target": one.target, "base": one.base, "increase": increase, **figures})
    whole = [targets[name].blocks for name in targets if name not in done]
    return {
        "rows": rows,
        "overall": cluster_ratio(whole, list(done.values())),
        "increase": sum(row["increase"] for row in rows),
        "validations": sum(row["validations"] for row in rows),
        "drop": max(row["test_before"] - row["test_after"] for row in rows),
    }


def _lent(name: str, plan: Sequence[Assignment], done: dict[str, Substitution]) -> list[int]:
    """Returns the blocks of a model that stand in those that it has served so far."""
    found: set[int] = set()
    for one in plan:
        if _took(one, name, done):
            pointers = done[one.target].pointers
            found.update(pointers[pointers < len(pointers)].tolist())
    return sorted(found)


def _took(one: Assignment, base: str, done: Collection[str]) -> bool:
    """Whether an assignment took blocks of a base before; what these left is known by it."""
    return one.base == base and one.target in done


def _added(ledger: Ledger) -> float:
    """Returns epsilon by the plain sum, as the paper adds it up."""
    return max(g.added.epsilon for g in ledger.guarantees.values() if g is not None)
