"""Shrinkage: closed forms, and what it is for: less luck in the winner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from search.loop.history import Record
from search.winners.shrinkage import paired_variances, shrink


def record(number: int, cases: Sequence[float] | None, **more: object) -> Record:
    fitness = None if cases is None else np.array([np.mean(cases)])
    values = None if cases is None else np.array(cases, np.float64)
    return Record(number, [number], {}, more.pop("fitness", fitness), cases=values, **more)  # type: ignore[arg-type]


def test_equal_variances_give_james_and_steins_factor() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.3, 40)
    cases = truth[:, None] + rng.normal(0, 1.0, (40, 200))
    records = [record(i, row.tolist()) for i, row in enumerate(cases)]
    estimates = shrink(records, [(200, 1.0)])
    fitness = cases.mean(axis=1)
    noise = paired_variances(cases, [(200, 1.0)])
    between = fitness.var(ddof=1) - noise.mean()
    for i in range(40):
        kept = between / (between + noise[i])
        expected = fitness.mean() + kept * (fitness[i] - fitness.mean())
        assert estimates[i].value == pytest.approx(expected)
        assert estimates[i].variance == pytest.approx(kept * noise[i])
    assert np.square([estimates[i].value - truth[i] for i in range(40)]).mean() < (
        np.square(fitness - truth).mean()
    )


def test_the_winner_is_better_and_less_flattered() -> None:
    rng = np.random.default_rng(1)
    gain, flattery_raw, flattery_shrunk = [], [], []
    for _ in range(200):
        truth = rng.normal(0, 0.1, 30)
        spread = np.where(np.arange(30) % 2, 3.0, 0.3)  # half of the candidates are erratic
        cases = truth[:, None] + spread[:, None] * rng.normal(0, 1, (30, 50))
        estimates = shrink([record(i, row.tolist()) for i, row in enumerate(cases)], [(50, 1.0)])
        raw = int(np.argmax(cases.mean(axis=1)))
        shrunk = max(estimates, key=lambda i: estimates[i].value)
        gain.append(truth[shrunk] - truth[raw])
        flattery_raw.append(cases[raw].mean() - truth[raw])
        flattery_shrunk.append(estimates[shrunk].value - truth[shrunk])
    assert np.mean(gain) > 0.03
    assert abs(np.mean(flattery_shrunk)) < np.mean(flattery_raw) / 4


def test_what_all_find_hard_is_no_noise() -> None:
    hard = np.random.default_rng(2).normal(0, 5, 100)
    cases = np.stack([hard, hard + 0.5])
    assert paired_variances(cases, [(100, 1.0)]) == pytest.approx([0, 0], abs=1e-20)
    estimates = shrink([record(i, row.tolist()) for i, row in enumerate(cases)], [(100, 1.0)])
    assert estimates[1].value == pytest.approx(cases[1].mean())


def test_tasks_count_by_their_weights() -> None:
    rng = np.random.default_rng(3)
    cases = rng.normal(0, 1, (5, 30))
    strata = [(10, 0.75), (19, 0.25), (1, 0.0)]
    apart = cases - cases.mean(axis=0)
    expected = 0.75**2 * apart[:, :10].var(axis=1, ddof=1) / 10
    expected += 0.25**2 * apart[:, 10:29].var(axis=1, ddof=1) / 19
    expected *= 5 / 4
    assert paired_variances(cases, strata) == pytest.approx(expected)


def test_failures_and_repeats_are_left_out() -> None:
    records = [
        record(0, [1.0, 2.0]),
        record(1, None),
        record(2, [1.0, 2.0], same_as=0),
        record(3, [0.0, 4.0]),
    ]
    assert set(shrink(records, [(2, 1.0)])) == {0, 3}
    assert shrink([record(1, None)], [(2, 1.0)]) == {}
    assert shrink([record(0, [1.0, 2.0])], [(2, 1.0)])[0].value == 1.5


def test_what_cannot_be_shrunk_is_refused() -> None:
    with pytest.raises(ValueError, match="ranks by one number, candidate 4 has 2"):
        shrink([record(4, [1.0], fitness=np.array([1.0, 2.0]))], [(1, 1.0)])
    with pytest.raises(ValueError, match="all 3 search items, candidate 4 has 1: use evaluators"):
        shrink([record(4, [1.0])], [(3, 1.0)])
    bare = Record(4, [], {}, np.array([1.0]))
    with pytest.raises(ValueError, match="candidate 4 has none"):
        shrink([bare], [(3, 1.0)])
