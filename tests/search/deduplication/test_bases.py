"""Base selection: ceilings hold, one base where one is enough, and the paper's sums."""

import math
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from search.deduplication.bases import (
    Assignment,
    Member,
    cross_bases,
    fair_order,
    greedy_bases,
    multi_bases,
)


def added(target: Member, base: Member) -> float:
    return target.epsilon + base.epsilon


def members(epsilons: list[float], extra: float = 100.0, cluster: str = "a") -> list[Member]:
    return [Member(f"{cluster}{e:g}", cluster, e, e + extra) for e in epsilons]


def increase(plan: tuple[Assignment, ...], given_: list[Member]) -> float:
    epsilons = {member.name: member.epsilon for member in given_}
    return round(sum(epsilons[one.base] for one in plan), 9)


def test_sums_of_epsilons_are_the_published_ones() -> None:
    qnli = members([float(e) for e in range(10, 0, -1)])
    mnli = members([0.2, 0.4, 0.8, 1.6, 2.0])
    plans = [[greedy_bases(m, added), multi_bases(m), cross_bases(m)] for m in (qnli, mnli)]
    assert [increase(plan, qnli) for plan in plans[0]] == [9, 29, 35]
    assert [increase(plan, mnli) for plan in plans[1]] == [0.8, 1.2, 1.4]


def test_a_chain_comes_from_the_top_after_all_that_the_middle_serves() -> None:
    plan = cross_bases(members([1, 2, 3, 4, 5, 6]))
    pairs = [(one.target, one.base) for one in plan]
    assert pairs == [("a4", "a3"), ("a5", "a3"), ("a6", "a3"), ("a3", "a2"), ("a2", "a1")]


models = st.lists(
    st.tuples(st.integers(1, 8), st.integers(1, 12), st.sampled_from("ab")), max_size=7
).map(lambda rows: [Member(f"m{i}", c, e, e + x) for i, (e, x, c) in enumerate(rows)])


@given(models)
def test_every_ceiling_holds_and_who_can_be_served_is_not_left_whole_beside_a_base(
    given_: list[Member],
) -> None:
    plan = greedy_bases(given_, added)
    known = {member.name: member for member in given_}
    targets = {one.target for one in plan}
    bases = {one.base for one in plan}
    assert len(targets) == len(plan)
    assert not targets & bases
    for one in plan:
        target, base = known[one.target], known[one.base]
        assert target.cluster == base.cluster
        assert added(target, base) <= target.ceiling
    whole = [member for member in given_ if member.name not in targets | bases]
    for one, other in combinations(whole, 2):
        apart = one.cluster != other.cluster
        assert apart or min(added(one, other) - one.ceiling, added(other, one) - other.ceiling) > 0


@given(models)
def test_where_one_base_serves_all_it_is_the_cheapest(given_: list[Member]) -> None:
    wide = [Member(m.name, "a", m.epsilon, 100.0) for m in given_]
    plan = greedy_bases(wide, added)
    if len(wide) > 1:
        assert len({one.base for one in plan}) == 1
        assert len(plan) == len(wide) - 1
        least = min(m.epsilon for m in wide)
        assert increase(plan, wide) == least * len(plan)


def test_equal_prices_go_by_size_and_who_has_no_promise_loses_none() -> None:
    inf = math.inf
    given_ = [Member(name, "a", inf, inf, size) for name, size in (("x", 1), ("y", 3), ("z", 3))]
    assert {one.base for one in greedy_bases(given_, added)} == {"y"}
    given_ += [Member("p", "a", 2.0, 100.0), Member("q", "a", 1.0, 100.0)]
    assert {one.base for one in greedy_bases(given_, added)} == {"q"}


def test_fair_order_is_by_increasing_epsilon() -> None:
    assert [m.epsilon for m in fair_order(members([4, 1, 2]))] == [1, 2, 4]
    assert greedy_bases([], added) == multi_bases([]) == cross_bases([]) == ()
