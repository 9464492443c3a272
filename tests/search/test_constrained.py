"""The best mean within limits: feasibility first, by hand and by property."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.evaluator import Direction, Score
from evaluators.requests import EvaluationError
from search.constrained import FLOOR, BoundConstrained, Constrained, Limit
from search.objective import Pareto, WeightedMean

DIRECTIONS: dict[str, Direction] = {
    "code/bits": "minimize",
    "quiz/accuracy": "maximize",
    "canary/exposure": "minimize",
    "canary/first": "minimize",
    "member/auc": "minimize",
}
MAIN = {
    "code": "code/bits",
    "quiz": "quiz/accuracy",
    "canary": "canary/exposure",
    "member": "member/auc",
}
BASE = {
    "code/bits": 3.0,
    "quiz/accuracy": 0.5,
    "canary/exposure": 1.4,
    "canary/first": 0.0,
    "member/auc": 0.5,
}
EXPERTS = {
    "coder": {**BASE, "code/bits": 2.0, "canary/exposure": 5.4, "member/auc": 0.9},
    "quizzer": {**BASE, "quiz/accuracy": 0.9, "canary/exposure": 1.0, "member/auc": 0.4},
}
GOOD = {**BASE, "code/bits": 2.25, "quiz/accuracy": 0.8}


def bind(limits: Any, **options: Any) -> BoundConstrained:
    return Constrained(limits, **options).bind(DIRECTIONS, MAIN, BASE, EXPERTS)


LIMITS = {"canary": {"at_most": 1.6}, "member/auc": {"at_most": 0.6}}


def test_within_all_limits_it_is_the_mean_of_the_other_tasks() -> None:
    expected = (0.75 / 1.0 + 0.3 / 0.4) / 2
    np.testing.assert_allclose(bind(LIMITS).fitness(GOOD), [expected])
    np.testing.assert_allclose(
        bind(LIMITS).fitness({**GOOD, "canary/exposure": 1.6, "member/auc": 0.0}), [expected]
    )


def test_beyond_a_limit_it_is_by_how_far_and_nothing_else() -> None:
    out = {**GOOD, "canary/exposure": 2.4, "member/auc": 0.9}
    np.testing.assert_allclose(bind(LIMITS).fitness(out), [FLOOR - 0.5 - 0.5])
    better = {**out, "code/bits": 0.1, "quiz/accuracy": 1.0}
    assert bind(LIMITS).fitness(better) == bind(LIMITS).fitness(out)


VALUES = st.floats(-1e6, 1e6)


@given(VALUES, VALUES, VALUES, VALUES)
def test_within_always_ranks_above_beyond(
    mean: float, inside: float, other_mean: float, outside: float
) -> None:
    """Deb's rules: feasibility first, then the mean within and the excess beyond."""
    objective = BoundConstrained(
        WeightedMean({"a": 1.0}, "raw").bind({"a/m": "maximize"}, {"a": "a/m"}, {}, {}),
        (Limit("c/m", 2.0),),
    )

    def fitness(skill: float, limited: float) -> float:
        return float(objective.fitness({"a/m": skill, "c/m": limited})[0])

    within, beyond = min(inside, 2.0), max(outside, 2.0 + 1e-9)
    assert fitness(mean, within) > fitness(other_mean, beyond)
    assert fitness(mean, beyond) >= fitness(other_mean, beyond + 1.0)
    if mean >= FLOOR and other_mean >= FLOOR:
        assert (fitness(mean, within) > fitness(other_mean, within)) == (mean > other_mean)


def test_half_of_what_the_worst_expert_remembers_above_chance() -> None:
    objective = bind({"canary": {"share": 0.5, "chance": 1.4}})
    assert objective.limits == (Limit("canary/exposure", 1.4 + 0.5 * 4.0),)
    nothing = bind({"canary": {"share": 0.5, "chance": 6.0}})
    assert nothing.limits[0].bound == 6.0


def test_a_limit_from_below_and_another_metric_than_the_main_one() -> None:
    objective = bind({"quiz": {"at_least": 0.6}, "canary/first": {"at_most": 0.0}})
    assert [term.task for term in objective.skill.terms] == ["code", "member"]  # canary: limited
    assert objective.violation(BASE) == pytest.approx(0.1 / 0.6)
    assert objective.violation({**GOOD, "canary/first": 0.25}) == 0.25


def test_a_limited_task_may_have_a_weight_as_well() -> None:
    options = {"weights": {"quiz": 3.0, "code": 1.0, "canary": 0.0, "member": 0.0}}
    objective = bind({"quiz": {"at_least": 0.6}}, **options)
    np.testing.assert_allclose(objective.fitness(GOOD), [0.75])


def test_cases_are_those_of_the_skills() -> None:
    scores = {key: Score(value, np.array([value])) for key, value in GOOD.items()}
    fitness, cases = bind(LIMITS)(scores)
    np.testing.assert_allclose(fitness, [0.75])
    np.testing.assert_allclose(cases, [0.75, 0.75])  # type: ignore[arg-type]


def test_scores_that_cannot_be_limited_are_evaluation_errors() -> None:
    with pytest.raises(EvaluationError, match="canary/exposure is limited, and is nan"):
        bind(LIMITS).fitness({**GOOD, "canary/exposure": math.nan})
    with pytest.raises(EvaluationError, match="member/auc is limited, and is missing"):
        bind(LIMITS).fitness({k: v for k, v in GOOD.items() if k != "member/auc"})
    assert bind(LIMITS).fitness({**GOOD, "canary/exposure": 1e300})[0] < FLOOR


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "objective.limits is empty: name a limit"),
        ({"secrets": {"at_most": 1.0}}, "names 'secrets'; known are the tasks code, quiz, canary"),
        ({"canary/bits": {"at_most": 1.0}}, "names 'canary/bits'; known are the tasks"),
        ({"canary": {"at_most": math.inf}}, r"limits\.canary\.at_most must be finite, got inf"),
        ({"canary": {"below": 1.0}}, r"limits\.canary must be \{at_most: x\}, .* got \{'below'"),
        ({"canary": {"at_most": 1.0, "share": 0.5}}, r"must be \{at_most: x\}"),
        ({"quiz": {"share": 0.5, "chance": 0.5}}, "quiz/accuracy is to be maximised: use at_mo"),
        ({"canary": {"share": -1.0, "chance": 0.5}}, "share must be 0 or more, got -1.0"),
        ({key: {"at_most": 1.0} for key in MAIN}, "limits every task, so that nothing is left"),
    ],
)
def test_limits_are_refused_by_name(limits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind(limits)


def test_a_share_needs_an_expert_that_was_scored() -> None:
    with pytest.raises(ValueError, match="no expert has a finite canary/exposure to take a share"):
        Constrained({"canary": {"share": 0.5, "chance": 0.0}}, normalize="raw").bind(
            DIRECTIONS, MAIN, BASE, {}
        )


def test_pareto_takes_memorization_raw_beside_normalised_skills() -> None:
    objective = Pareto(["code", "canary"], {"canary": "raw"}).bind(DIRECTIONS, MAIN, BASE, EXPERTS)
    np.testing.assert_allclose(objective.fitness(GOOD), [0.75, -1.4])
    with pytest.raises(ValueError, match=r"objective.normalize names unknown tasks \['can'\]"):
        Pareto(["code"], {"can": "raw"}).bind(DIRECTIONS, MAIN, BASE, EXPERTS)
    with pytest.raises(ValueError, match=r"must be one of .*, got .row."):
        Pareto(["code"], {"code": "row"}).bind(DIRECTIONS, MAIN, BASE, EXPERTS)  # type: ignore[dict-item]
