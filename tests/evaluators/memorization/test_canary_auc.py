"""Canary AUC: known answers, and that it sees what a model has learnt by heart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.memorization.canary_auc import CanaryAuc
from evaluators.requests import Likelihood
from tests.evaluators.memorization.conftest import LEARNT, canary_line

WriteCanaries = Callable[..., str]


def test_known_answer(fresh: Resident, write_canaries: WriteCanaries) -> None:
    evaluator = CanaryAuc(
        fresh.info, data=write_canaries([canary_line(i, variants=3) for i in range(2)])
    )
    losses = [1.0, 2.0, 3.0, 1.0, 5.0, 4.0, 6.0, 3.0]
    scores = evaluator.score([Likelihood(-loss, False) for loss in losses])
    assert scores["auc"].cases == pytest.approx([2.5 / 3, 1 / 3])
    assert scores["auc"].value == pytest.approx(3.5 / 6)
    pooled = stats.mannwhitneyu([-1, -5], [-2, -3, -1, -4, -6, -3]).statistic / 12
    assert scores["auc_pooled"].value == pytest.approx(pooled)
    means = stats.mannwhitneyu([-1, -5], [-2, -13 / 3]).statistic / 4
    assert scores["auc_of_means"].value == pytest.approx(means)
    assert {score.chance for score in scores.values()} == {0.5}


def test_lengths_do_not_decide_between_canaries(
    fresh: Resident, write_canaries: WriteCanaries
) -> None:
    """Twice as many tokens, twice the loss: the same loss per token."""
    long = {
        **canary_line(0, variants=2),
        "text": "ab: 1234567890",
        "span": [4, 14],
        "variants": ["0987654321", "1122334455"],
    }
    short = {**long, "id": "short", "text": "ab: 12345", "span": [4, 9], "variants": ["0", "1"]}
    short["variants"] = ["09876", "11223"]
    evaluator = CanaryAuc(fresh.info, data=write_canaries([long, short]))
    losses = np.array([10, 20, 20, 5, 10, 10])
    scores = evaluator.score([Likelihood(-loss, False) for loss in losses])
    assert scores["auc_pooled"].value == scores["auc_of_means"].value == 1.0


def test_what_was_trained_on_is_told_apart(
    memorized: Resident, write_canaries: WriteCanaries
) -> None:
    evaluator = CanaryAuc(memorized.info, data=write_canaries(LEARNT))
    scores = evaluator.score(Engine(memorized).run(evaluator.items.requests))
    assert {key: score.value for key, score in scores.items() if key != "blind_auc"} == {
        "auc": 1.0,
        "auc_pooled": 1.0,
        "auc_of_means": 1.0,
    }
