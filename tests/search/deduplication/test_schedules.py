"""Schedules against plain recursions, against their own rules, and the paper's block counts."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.deduplication.schedules import Asked, DedupSchedule, Drd, Dred, GreedyN, run

Log = list[tuple[tuple[int, ...], bool]]


def asked_by(schedule: DedupSchedule, count: int, bad: frozenset[int]) -> Log:
    """All questions and answers; a group may go unless it holds one of the bad blocks."""
    order = [block * 3 % count if count % 3 else block for block in range(count)]
    asked = run(schedule, order, lambda group: bad.isdisjoint(group))
    return list(zip(asked.groups, asked.answers, strict=True))


def plain_dred(order: list[int], bad: frozenset[int], least: int) -> Log:
    """As published, by recursion on (current, rest) instead of a loop."""

    def step(current: list[int], rest: list[int]) -> Log:
        if len(current) < least:
            return []
        middle = max(1, len(current) // 2)
        left, right = current[:middle], current[middle:]
        good = bad.isdisjoint(left)
        if good or (least == 1 and len(left) == 1):
            return [(tuple(left), good), *step(right + rest, [])]
        return [(tuple(left), False), *step(left, right + rest)]

    return step(order, [])


def plain_drd(order: list[int], bad: frozenset[int], least: int) -> tuple[Log, set[int]]:
    """As published: what is asked of a range, and what of it goes."""
    if len(order) < least:
        return [], set()
    middle = max(1, len(order) // 2)
    left, right = order[:middle], order[middle:]
    good = bad.isdisjoint(left)
    log, gone = list[tuple[tuple[int, ...], bool]](), set(left if good else [])
    if not good and len(left) > 1:
        log, gone = plain_drd(left, bad, least)
    log = [(tuple(left), good), *log]
    if good or len(gone) > len(left) / 2:
        more, went = plain_drd(right, bad, least)
        return [*log, *more], gone | went
    return log, gone


def order_of(count: int) -> list[int]:
    return [block * 3 % count if count % 3 else block for block in range(count)]


models = st.integers(0, 150).flatmap(
    lambda n: st.tuples(st.just(n), st.frozensets(st.integers(0, max(0, n - 1)), max_size=12))
)


@given(models, st.integers(1, 12))
def test_schedules_ask_what_plain_recursions_ask(
    model: tuple[int, frozenset[int]], least: int
) -> None:
    count, bad = model
    assert asked_by(Dred(least), *model) == plain_dred(order_of(count), bad, least)
    assert asked_by(Drd(least), *model) == plain_drd(order_of(count), bad, least)[0]
    order = order_of(count)
    groups = [tuple(order[i : i + least]) for i in range(0, count, least)]
    assert asked_by(GreedyN(least), *model) == [(g, bad.isdisjoint(g)) for g in groups]


@given(models)
def test_down_to_single_blocks_only_those_stay_that_may_not_go(
    model: tuple[int, frozenset[int]],
) -> None:
    count, bad = model
    log = asked_by(Dred(1), count, bad)
    gone = {block for group, answer in log if answer for block in group}
    assert gone == set(range(count)) - bad
    assert len({group for group, _ in log}) == len(log)


@pytest.mark.parametrize("schedule", [GreedyN(3), Drd(3), Drd(1), Dred(3), Dred(2), Dred(1)])
def test_no_answers_take_more_questions_than_foretold_and_some_take_as_many(
    schedule: DedupSchedule,
) -> None:
    for count in range(11):
        most = schedule.most(count)
        counts = []
        for given_answers in product([False, True], repeat=most):
            answers = iter([*given_answers, False])  # one more would be too many
            asked = run(schedule, range(count), lambda _, answers=answers: next(answers))
            counts.append(len(asked.answers))
        exact = not isinstance(schedule, Drd)  # which asks about right halves after success alone
        assert max(counts) == most or (not exact and max(counts) < most)


@given(models, st.integers(1, 4), st.sampled_from([GreedyN, Drd, Dred]))
def test_failures_end_it_where_it_would_have_gone_on_and_nothing_goes_twice(
    model: tuple[int, frozenset[int]], failures: int, kind: type[GreedyN | Drd | Dred]
) -> None:
    free, bound = asked_by(kind(), *model), asked_by(kind(failures=failures), *model)
    assert bound == free[: len(bound)]
    noes = [answer for _, answer in bound].count(False)
    assert noes == failures or (bound == free and noes < failures)
    gone = [block for group, answer in free if answer for block in group]
    assert len(gone) == len(set(gone))
    assert model[1].isdisjoint(gone)


def test_blocks_without_saliency_are_asked_for_last_together_and_counted() -> None:
    lent = {40, 42}
    asked = run(GreedyN(20), range(20), lambda group: 0 not in group, zeros=[40, 41, 42, 43],
                lent=lambda: lent)  # fmt: skip
    assert asked.groups == [tuple(range(20)), (41, 43)]
    assert asked.answers == [False, True]
    assert asked.removed == {41, 43}
    spent = run(GreedyN(20, failures=1), range(20), lambda _: False, zeros=[40])
    assert spent.groups == [tuple(range(20))]
    assert spent.ended
    with pytest.raises(RuntimeError, match="all 1 failures are spent"):
        spent([40])


def test_the_published_counts_are_the_floor_of_the_shortest_range() -> None:
    """RoBERTa-base with an untied head: 277 blocks of 768^2, of which 2.88 and 5.41 % stayed."""
    matrix = 768 * 768
    tables = 2 * 50265 * 768  # the embedding and the head: 66 blocks each, the last one padded
    blocks = 2 * 66 + 12 * (4 + 4 + 4) + 1
    vectors = 12 * (4 * 768 + 3072 + 768 + 4 * 768) + 2 * 768  # biases and norms
    untouched = 514 * 768 + 768 + vectors + (768 + 2 * 768 + 50265)  # positions, types; the head
    original = tables + (12 * 12 + 1) * matrix + untouched

    def ratio(kept: int) -> float:
        return 100 * (kept * matrix + untouched) / original

    def kept(last: bool) -> int:
        zeros = range(212, blocks)  # rows that no text of the split reads, and their head

        def check(group: Sequence[int]) -> bool:
            return last or len(group) != 7

        return blocks - len(run(Dred(), range(212), check, zeros=zeros).removed)

    assert blocks == 277
    assert (kept(True), kept(False)) == (7, 14)
    assert ratio(7) == pytest.approx(2.88, abs=0.005)
    assert ratio(14) == pytest.approx(5.41, abs=0.005)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GreedyN(0), "size must be at least 1, got 0"),
        (lambda: Dred(min_length=0), "min_length must be at least 1, got 0"),
        (lambda: Drd(failures=0), "failures must be at least 1, got 0"),
    ],
)
def test_options_without_meaning_are_refused(make: type[DedupSchedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_asking_remembers() -> None:
    asked = Asked(lambda group: len(group) < 2)
    assert (asked([1]), asked([2, 3]), asked.removed, asked.ended) == (True, False, {1}, False)
