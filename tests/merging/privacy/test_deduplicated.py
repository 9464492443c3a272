"""What a deduplicated model promises, recomputed from its lineage by plain set arithmetic."""

import math
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy.deduplicated import deduplicated
from merging.privacy.ledger import Ledger

DATA = ("mnli", "qnli", "sst2", "val")
PAIRS = [(a, b) for i, a in enumerate(DATA) for b in DATA[i + 1 :]]


@dataclass
class Node:
    """A model: trained on one data set, or made of earlier ones by deduplication."""

    dataset: str
    epsilon: int
    target: int | None = None
    bases: list[int] = field(default_factory=list)
    validation: int = 0


@st.composite
def families(draw: st.DrawFn) -> tuple[list[Node], set[frozenset[str]]]:
    nodes: list[Node] = []
    for number in range(draw(st.integers(2, 8))):
        earlier = st.integers(0, number - 1)
        made = number > 0 and draw(st.booleans())
        nodes.append(
            Node(
                draw(st.sampled_from(DATA[:3])),
                draw(st.integers(1, 9)),
                draw(earlier) if made else None,
                draw(st.lists(earlier, min_size=1, max_size=3, unique=True)) if made else [],
                draw(st.integers(0, 3)) if made else 0,
            )
        )
    apart = draw(st.sets(st.sampled_from(PAIRS)))
    return nodes, {frozenset(pair) for pair in apart}


def releases(nodes: list[Node], number: int) -> set[tuple[str, str, int]]:
    """(identity, data set, epsilon) of all that a model descends from."""
    node = nodes[number]
    if node.target is None:
        return {(f"training {number}", node.dataset, node.epsilon)}
    found = set[tuple[str, str, int]]()
    for parent in (node.target, *node.bases):
        found |= releases(nodes, parent)
    if node.validation:
        found.add((f"dedup {number}", "val", node.validation))
    return found


def ledgers(nodes: list[Node], apart: set[frozenset[str]]) -> list[Ledger]:
    """The same through records, as models pass them on."""

    def spend(dataset: str, epsilon: int, release: str) -> PrivacySpend:
        others = tuple(d for d in DATA if frozenset({d, dataset}) in apart)
        delta = 0.0 if dataset == "val" else 1e-6
        return PrivacySpend(
            dataset, epsilon, delta, "test", "1", disjoint_from=others, release=release
        )

    made: list[Ledger] = []
    for number, node in enumerate(nodes):
        if node.target is None:
            ledger = Ledger((spend(node.dataset, node.epsilon, f"training {number}"),))
        else:
            noes = [spend("val", node.validation, f"dedup {number}")] if node.validation else []
            bases = [made[base] for base in node.bases]
            ledger = deduplicated(made[node.target], bases, noes)
        made.append(Ledger().read(ledger.record(), "it", f"sha {number}"))
    return made


@given(families())
def test_a_model_promises_what_its_lineage_adds_up_to(
    family: tuple[list[Node], set[frozenset[str]]],
) -> None:
    nodes, apart = family
    for number, ledger in enumerate(ledgers(nodes, apart)):
        spent = releases(nodes, number)
        sums = {
            data: sum(e for _, d, e in spent if frozenset({d, data}) not in apart)
            for data in {d for _, d, _ in spent}
        }
        assert {d: p and p.price.epsilon for d, p in ledger.guarantees.items()} == sums
        assert ledger.everywhere is not None
        assert ledger.everywhere.epsilon == max(sums.values())
        count = max(
            sum(d != "val" and frozenset({d, data}) not in apart for _, d, _ in spent)
            for data in sums
        )
        assert math.isclose(ledger.everywhere.delta, count * 1e-6)


def test_same_data_adds_disjoint_data_takes_the_largest_and_what_is_unknown_stays_so() -> None:
    def trained(dataset: str, epsilon: float, apart: tuple[str, ...] = ()) -> Ledger:
        release = f"{dataset} {epsilon}"
        return Ledger((PrivacySpend(dataset, epsilon, 1e-6, "t", "1", disjoint_from=apart,
                                    release=release),))  # fmt: skip

    def epsilon(ledger: Ledger) -> float | None:
        return None if ledger.everywhere is None else ledger.everywhere.epsilon

    target = trained("qnli", 4.0)
    assert epsilon(deduplicated(target, [trained("qnli", 1.0)])) == 5.0
    assert epsilon(deduplicated(target, [trained("mnli", 1.0)])) == 5.0  # not declared disjoint
    assert epsilon(deduplicated(target, [trained("mnli", 1.0, ("qnli",))])) == 4.0
    assert epsilon(deduplicated(target, [trained("mnli", 6.0, ("qnli",))])) == 6.0
    assert epsilon(deduplicated(target, [target])) == 4.0
    unknown = deduplicated(target, [Ledger(unrecorded=("the base",))])
    assert not unknown.private
    assert unknown.unrecorded == ("the base",)
