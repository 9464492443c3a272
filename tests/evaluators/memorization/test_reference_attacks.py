"""Attacks beside reference models: naive definitions, and what each is better at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluators.memorization.likelihood_ratio import likelihood_ratio
from evaluators.memorization.roc import auc
from evaluators.memorization.windows import window_votes


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60))
@settings(max_examples=40, deadline=None)
def test_votes_are_counted(gains: list[int]) -> None:
    shares = []
    for size in (2, 3, 4, 5, 8, 11, 15, 21, 29, 40):
        size = min(size, len(gains))
        sums = [sum(gains[i : i + size]) for i in range(len(gains) - size + 1)]
        shares.append(sum(each > 0 for each in sums) / len(sums))
    assert window_votes(np.array(gains, float)) == pytest.approx(sum(shares) / 10)


def test_votes_withstand_single_tokens() -> None:
    """Members gain a little everywhere; all texts gain or lose a lot at single tokens."""
    draw = np.random.default_rng(0)
    gains = draw.normal(0, 0.3, (200, 80)) + 0.05 * (np.arange(200) < 100)[:, None]
    gains += 20 * draw.standard_normal((200, 80)) * (draw.random((200, 80)) < 0.02)
    votes, means = np.array([window_votes(each) for each in gains]), gains.mean(1)
    assert auc(votes[:100], votes[100:]) > auc(means[:100], means[100:]) + 0.1


def test_ratio_is_that_of_two_gaussians() -> None:
    """With so many references that shrinkage does nothing: scipy's densities, text by text."""
    draw = np.random.default_rng(1)
    mix = draw.normal(0, 1, (10, 10))
    references = [draw.normal(-2, 1, (20_000, 10)) @ mix for _ in range(2)]
    texts = [draw.normal(-2, 1, 10) @ mix for _ in range(2)]
    for text, known, mine in zip(
        texts, references, likelihood_ratio(texts, references), strict=True
    ):
        pieces = np.split(np.arange(10), [3, 6, 8])
        roots = np.sqrt([len(piece) for piece in pieces])
        s = np.array([text[piece].sum() for piece in pieces]) / roots
        all_s = np.stack([known[:, piece].sum(1) for piece in pieces], 1) / roots
        mean, cov, gain = all_s.mean(0), np.cov(all_s.T), 0.5
        trained = stats.multivariate_normal(mean + gain * roots, cov)
        ratio = trained.logpdf(s) - stats.multivariate_normal(mean, cov).logpdf(s)
        c = roots @ np.linalg.solve(cov, roots)
        assert mine == pytest.approx((ratio / gain + gain * c / 2) / np.sqrt(c), rel=0.01)


def test_one_token_is_the_offline_attack() -> None:
    """One signal: (s - mu) / sigma; the variance is shrunk to the mean, 2 to R - 1."""
    references = [np.array([[-1.0], [-3.0], [-2.0]]), np.array([[-4.0], [-4.0], [-1.0]])]
    found = likelihood_ratio([np.array([-1.0]), np.array([-1.0])], references)
    variances = 0.5 * np.array([1.0, 3.0]) + 0.5 * 2.0
    assert found == pytest.approx(np.array([1.0, 2.0]) / np.sqrt(variances), rel=1e-5)


def test_correlated_parts_count_once() -> None:
    """Noise that three parts share drowns their mean, the fourth tells members.

    Without a member, z is nearly standard normal; records differ in how hard they are.
    """
    draw, count = np.random.default_rng(2), 300
    hard = draw.normal(-3, 1, (count, 1, 1))

    def models(number: int) -> np.ndarray:  # type: ignore[type-arg]
        shared = np.repeat(draw.normal(0, 2, (count, number, 1)), 4, -1) * [1, 1, 1, 0]
        noise = shared + draw.normal(0, 0.3, (count, number, 4))
        return np.repeat(noise, 5, -1) + hard + draw.normal(0, 0.2, (count, number, 20))

    references, target = models(6), models(1)[:, 0]
    inside = np.arange(count) < count // 2
    target[inside] += 0.4
    found = likelihood_ratio(list(target), list(references))
    plain = (target - references.mean(1)).mean(1)
    assert auc(found[inside], found[~inside]) > auc(plain[inside], plain[~inside]) + 0.1
    assert abs(found[~inside].mean()) < 0.3
    assert found[~inside].std() == pytest.approx(1, abs=0.25)


def test_equal_references_leave_no_spread() -> None:
    texts = [np.full(5, -1.0), np.full(5, -2.0)]
    found = likelihood_ratio(texts, [np.full((2, 5), -1.5)] * 2)
    assert np.isfinite(found).all()
    assert found[0] > 0 > found[1]
