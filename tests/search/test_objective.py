"""Fitness by hand, and every way in which an objective can be asked for the impossible."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.evaluator import Direction, Score
from evaluators.requests import EvaluationError
from search.objective import BoundObjective, Pareto, WeightedMean

DIRECTIONS: dict[str, Direction] = {
    "code/bits": "minimize",
    "code/accuracy": "maximize",
    "quiz/accuracy": "maximize",
}
MAIN = {"code": "code/bits", "quiz": "quiz/accuracy"}
BASE = {"code/bits": 3.0, "code/accuracy": 0.2, "quiz/accuracy": 0.5}
EXPERTS = {
    "coder": {"code/bits": 2.0, "code/accuracy": 0.6, "quiz/accuracy": 0.4},
    "quizzer": {"code/bits": 3.5, "code/accuracy": 0.1, "quiz/accuracy": 0.9},
}


def bind(objective: WeightedMean | Pareto, **changes: Any) -> BoundObjective:
    given_ = {
        "directions": DIRECTIONS,
        "main": MAIN,
        "base_scores": BASE,
        "expert_scores": EXPERTS,
    }
    return objective.bind(**{**given_, **changes})


def test_normalised_mean_by_hand() -> None:
    values = {"code/bits": 2.25, "code/accuracy": 0.0, "quiz/accuracy": 0.8}
    expected = ((3.0 - 2.25) / 1.0 + (0.8 - 0.5) / 0.4) / 2
    objective = bind(WeightedMean())
    np.testing.assert_allclose(objective.fitness(values), [expected], rtol=1e-12)
    assert objective.names == ("mean",)


def test_base_is_zero_and_best_experts_are_one() -> None:
    objective = bind(Pareto())
    np.testing.assert_allclose(objective.fitness(BASE), [0.0, 0.0])
    best = {"code/bits": 2.0, "quiz/accuracy": 0.9}
    np.testing.assert_allclose(objective.fitness(best), [1.0, 1.0])
    assert objective.names == ("code", "quiz")


def test_weights_are_normalised_and_zero_leaves_out() -> None:
    values = {"code/bits": 2.0, "quiz/accuracy": 0.5}
    heavy = bind(WeightedMean(weights={"code": 3.0, "quiz": 1.0}))
    np.testing.assert_allclose(heavy.fitness(values), [0.75])
    alone = bind(WeightedMean(weights={"code": 2.0, "quiz": 0.0}))
    np.testing.assert_allclose(alone.fitness({"code/bits": 2.0}), [1.0])


def test_raw_is_signed_and_reads_no_reference() -> None:
    objective = bind(Pareto(normalize="raw"), base_scores={}, expert_scores={})
    values = {"code/bits": 2.0, "quiz/accuracy": 0.5}
    assert objective.fitness(values).tolist() == [-2.0, 0.5]


def test_another_metric_and_order_of_tasks() -> None:
    objective = bind(Pareto(tasks=["quiz", "code"], metrics={"code": "accuracy"}))
    values = {"code/accuracy": 0.4, "quiz/accuracy": 0.9}
    np.testing.assert_allclose(objective.fitness(values), [1.0, 0.5])


def test_cases_are_normalised_per_item_and_joined() -> None:
    scores = {
        "code/bits": Score(2.5, np.array([3.0, 2.0])),
        "quiz/accuracy": Score(0.5, np.array([0.0, 1.0, 0.5])),
    }
    fitness, cases = bind(WeightedMean())(scores)
    np.testing.assert_allclose(fitness, [0.25])
    assert cases is not None
    np.testing.assert_allclose(cases, [0.0, 1.0, -1.25, 1.25, 0.0])
    _, none = bind(WeightedMean())({**scores, "code/bits": Score(2.5)})
    assert none is None


@given(st.floats(0, 10), st.floats(0, 1))
def test_fitness_from_values_equals_fitness_from_scores(bits: float, accuracy: float) -> None:
    scores = {"code/bits": Score(bits), "quiz/accuracy": Score(accuracy)}
    for objective in (bind(WeightedMean(weights={"code": 0.3, "quiz": 0.7})), bind(Pareto())):
        values = {key: score.value for key, score in scores.items()}
        assert objective(scores)[0].tobytes() == objective.fitness(values).tobytes()


def test_scores_that_cannot_be_used_are_evaluation_errors() -> None:
    objective = bind(WeightedMean())
    with pytest.raises(EvaluationError, match="code/bits is inf; the merged model is broken"):
        objective.fitness({"code/bits": math.inf, "quiz/accuracy": 0.5})
    with pytest.raises(EvaluationError, match="gave no quiz/accuracy, only code/bits"):
        objective.fitness({"code/bits": 1.0})
    broken = {
        "code/bits": Score(1.0, np.array([1.0, math.nan])),
        "quiz/accuracy": Score(0.5, np.array([1.0])),
    }
    with pytest.raises(EvaluationError, match="code/bits of item 1 is nan"):
        objective(broken)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            WeightedMean(weights={"cod": 1.0}),
            r"objective.weights names unknown tasks \['cod'\]; known are code, quiz",
        ),
        (WeightedMean(weights={"code": 1.0}), r"gives no weight to \['quiz'\]"),
        (WeightedMean(weights={"code": -1.0, "quiz": 1.0}), "code is -1.0; it must be 0 or more"),
        (WeightedMean(weights={"code": math.nan, "quiz": 1.0}), "code is nan"),
        (WeightedMean(weights={"code": 0, "quiz": 0}), "objective.weights are all 0"),
        (
            WeightedMean(metrics={"code": "f1"}),
            "objective.metrics: code has no metric 'f1', only bits, accuracy",
        ),
        (WeightedMean(metrics={"cod": "f1"}), r"objective.metrics names unknown tasks \['cod'\]"),
        (WeightedMean(normalize="both"), "must be 'expert' or 'raw', got 'both'"),  # type: ignore[arg-type]
        (Pareto(tasks=["art"]), r"objective.tasks names unknown tasks \['art'\]"),
        (Pareto(tasks=["code", "code"]), "must name each task once"),
        (Pareto(tasks=[]), "must name each task once"),
    ],
)
def test_options_are_refused_by_name(objective: WeightedMean | Pareto, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind(objective)


def test_references_that_cannot_normalise_are_refused_with_the_remedy() -> None:
    weak = {"coder": EXPERTS["coder"]}
    with pytest.raises(
        ValueError,
        match=r"task 'quiz': no expert is better than the base \(quiz/accuracy, to maximize: base "
        r"0.5, best expert coder 0.4\); .*objective.normalize 'raw'",
    ):
        bind(WeightedMean(), expert_scores=weak)
    with pytest.raises(
        ValueError, match=r"task 'code': the base's code/bits is inf.*normalize 'raw'"
    ):
        bind(WeightedMean(), base_scores={**BASE, "code/bits": math.inf})
    with pytest.raises(ValueError, match="'code': no expert has a finite code/bits to normalise"):
        bind(WeightedMean(), expert_scores={"quizzer": {"quiz/accuracy": 0.9}})
    with pytest.raises(ValueError, match="there is no task to search on"):
        bind(WeightedMean(), main={})
    bind(WeightedMean(weights={"code": 1.0, "quiz": 0.0}), expert_scores=weak)


def test_an_expert_may_lack_tasks() -> None:
    experts = {"coder": {"code/bits": 2.0}, "quizzer": {"quiz/accuracy": 0.9}}
    np.testing.assert_allclose(
        bind(Pareto(), expert_scores=experts).fitness({"code/bits": 2.0, "quiz/accuracy": 0.9}),
        [1.0, 1.0],
    )


def test_objectives_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        WeightedMean().normalize = "raw"  # type: ignore[misc]
