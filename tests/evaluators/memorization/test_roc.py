"""Areas, placements, hits and advantage against scipy, scikit-learn and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from evaluators.memorization.roc import advantage, auc, placements, true_positives_at

scores = st.lists(st.integers(0, 8), min_size=1, max_size=25)


@given(scores, scores)
@settings(max_examples=60, deadline=None)
def test_auc_is_mann_and_whitneys(members: list[int], others: list[int]) -> None:
    inside, outside = np.array(members, float), np.array(others, float)
    expected = stats.mannwhitneyu(inside, outside).statistic / (len(members) * len(others))
    assert auc(inside, outside) == pytest.approx(expected)
    labels = np.repeat([1, 0], [len(members), len(others)])
    assert auc(inside, outside) == pytest.approx(roc_auc_score(labels, [*members, *others]))


@given(scores, scores)
@settings(max_examples=60, deadline=None)
def test_placements_are_shares_of_the_other_side(members: list[int], others: list[int]) -> None:
    inside, outside = np.array(members, float), np.array(others, float)
    wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    below, above = placements(inside, outside)
    np.testing.assert_allclose(below, wins.mean(1))
    np.testing.assert_allclose(above, wins.mean(0), atol=1e-12)
    everyone = np.concatenate([below, above])
    assert everyone.mean() == pytest.approx(auc(inside, outside))


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.1, 0.5]))
@settings(max_examples=60, deadline=None)
def test_hits_and_advantage_are_of_the_curve(
    members: list[int], others: list[int], false_alarms: float
) -> None:
    inside, outside = np.array(members, float), np.array(others, float)
    labels = np.repeat([1, 0], [len(members), len(others)])
    false, found, _ = roc_curve(labels, [*members, *others], drop_intermediate=False)
    hits, _ = true_positives_at(inside, outside, false_alarms)
    assert hits.mean() == pytest.approx(found[false <= false_alarms + 1e-9].max())
    assert advantage(inside, outside)[0] == pytest.approx(max(found - false))


def test_chance_of_hits_and_advantage() -> None:
    draw, runs = np.random.default_rng(0), 1500
    drawn = draw.normal(size=(runs, 100))
    hits = [true_positives_at(row[:40], row[40:], 0.1)[0].mean() for row in drawn]
    chance = true_positives_at(drawn[0, :40], drawn[0, 40:], 0.1)[1]
    assert chance == 7 / 61  # 6 of 60 may be false alarms
    assert np.mean(hits) == pytest.approx(chance, abs=0.006)
    gaps = [advantage(row[:40], row[40:]) for row in drawn]
    assert np.mean([gap for gap, _ in gaps]) == pytest.approx(gaps[0][1], rel=0.1)
