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
from search.normalisation import Term
from search.objective import Pareto, WeightedMean, WorstTask

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


def bind(objective: WeightedMean | Pareto | WorstTask, **changes: Any) -> Any:
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
        (WeightedMean(normalize="both"), "must be one of .*, got 'both'"),  # type: ignore[arg-type]
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
        r"0.5, best expert coder 0.4\); .*objective.normalize 'spread' or 'raw'",
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


def test_spread_is_the_way_from_the_worst_model_to_the_best_and_needs_no_better_expert() -> None:
    experts = {"coder": {"code/bits": 2.0}, "broken": {"code/bits": 7.0, "quiz/accuracy": 0.4}}
    objective = bind(Pareto(normalize="spread"), expert_scores=experts)
    gains = objective.fitness({"code/bits": 2.0, "quiz/accuracy": 0.55})
    np.testing.assert_allclose(gains, [(3.0 - 2.0) / (7.0 - 2.0), 0.05 / (0.5 - 0.4)])
    assert [term.ends for term in objective.terms] == [("broken", "coder"), ("broken", None)]
    bind(WeightedMean(normalize={"quiz": "spread"}), expert_scores={"coder": EXPERTS["coder"]})
    alike = {"coder": {"code/bits": 2.0, "quiz/accuracy": 0.5 * (1 + 1e-9)}}
    with pytest.raises(ValueError, match=r"'quiz': base and experts are all equal .* weight 0"):
        bind(WeightedMean(normalize="spread"), expert_scores=alike)


def test_a_span_that_is_rounding_is_none() -> None:
    experts = {"coder": {"code/bits": 3.0 - 1e-7, "quiz/accuracy": 0.9}}
    with pytest.raises(ValueError, match="'code': no expert is better than the base"):
        bind(WeightedMean(), expert_scores=experts)


@given(st.floats(0, 10), st.floats(0, 1), st.floats(0.1, 3.0))
def test_a_cap_is_on_what_a_task_gains_and_a_worst_task_is_paid_for_by_none(
    bits: float, accuracy: float, cap: float
) -> None:
    values = {"code/bits": bits, "quiz/accuracy": accuracy}
    gains = bind(Pareto()).fitness(values)
    capped = np.minimum(gains, cap)
    assert bind(Pareto(cap=cap)).fitness(values).tolist() == capped.tolist()
    np.testing.assert_allclose(bind(WeightedMean(cap=cap)).fitness(values), [capped.mean()])
    code = bind(WeightedMean(cap={"code": cap})).fitness(values)
    np.testing.assert_allclose(code, [(capped[0] + gains[1]) / 2])
    assert bind(WorstTask()).fitness(values).tolist() == [gains.min()]
    assert bind(WorstTask(tasks=["quiz"])).fitness(values).tolist() == [gains[1]]


def test_caps_and_minima_keep_items_but_say_that_they_do_not_add_up() -> None:
    scores = {
        "code/bits": Score(1.0, np.array([1.0, 1.0])),
        "quiz/accuracy": Score(0.5, np.array([1.0, 0.0])),
    }
    plain, capped = bind(WeightedMean()), bind(WeightedMean(cap=1.0))
    assert plain.linear
    assert not capped.linear
    for objective in (plain, capped, bind(WorstTask())):
        fitness, cases = objective(scores)
        assert (
            fitness.tobytes()
            == objective.fitness({k: s.value for k, s in scores.items()}).tobytes()
        )
        assert cases is not None
        np.testing.assert_allclose(cases, [2.0, 2.0, 1.25, -1.25])
    assert (plain(scores)[0].item(), capped(scores)[0].item()) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        (0.0, "cap of code is 0.0: the base gains 0"),
        (math.inf, "cap of code must be finite or null, got inf"),
        ({"cod": 1.0}, r"objective.cap names unknown tasks \['cod'\]"),
    ],
)
def test_caps_without_meaning_are_refused(cap: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind(WeightedMean(cap=cap))
    bind(WeightedMean(cap=-2.0, normalize="raw"))


def answers(rng: np.random.Generator, n: int, truth: float) -> tuple[Any, Any]:
    """Right and wrong of a base that is right at 60 %, and of an expert `truth` above it.

    Both get most of the items that are easy for one of them.
    """
    luck = rng.random((2, n))
    luck[1] = np.where(rng.random(n) < 0.5, luck[0], luck[1])
    return (luck[0] < 0.6).astype(float), (luck[1] < 0.6 + truth).astype(float)


def spans(n: int, truth: float, runs: int = 4000) -> list[int | None]:
    """Returns what is said of the spans of so many runs: items that would do, None: clear.

    One that no normaliser takes counts as infinitely many.
    """
    rng, said = np.random.default_rng(0), []
    for _ in range(runs):
        base, expert = answers(rng, n, truth)
        span = float(expert.mean() - base.mean())
        term = Term("quiz", "quiz/accuracy", 1.0, float(base.mean()), span)
        said.append(10**9 if span <= 0 else term.needed_items(base, expert))
    return said


def test_a_span_of_luck_passes_for_clear_as_seldom_as_two_standard_errors_say() -> None:
    for n in (100, 500):
        silent = np.mean([needed is None for needed in spans(n, truth=0.0)])
        assert 0.01 < silent < 0.035  # P(z > 2) = 0.023
    few, many = spans(100, truth=0.05), spans(2000, truth=0.05)
    assert np.mean([needed == 10**9 for needed in few]) > 0.1  # no normaliser at all
    assert np.mean([needed is None for needed in few]) < 0.3
    assert np.mean([needed is None for needed in many]) > 0.95


def test_the_items_that_would_do_are_those_at_which_the_true_span_is_clear() -> None:
    truth = 0.1
    base, expert = answers(np.random.default_rng(1), 200_000, truth)
    right = 4 * float((expert - base).var()) / truth**2  # n at which 2 SE is the true span
    said = [needed or 0 for needed in spans(40, truth)]
    assert float(np.median(said)) == pytest.approx(right, rel=0.15)
    there = [needed is None for needed in spans(math.ceil(right), truth)]
    assert 0.4 < np.mean(there) < 0.65


def test_ratio_is_the_share_of_the_best_expert_in_either_direction() -> None:
    objective = bind(Pareto(normalize="ratio"))
    gains = objective.fitness({"code/bits": 2.5, "quiz/accuracy": 0.45})
    np.testing.assert_allclose(gains, [2 - 2.5 / 2.0, 0.45 / 0.9])
    np.testing.assert_allclose(objective.fitness({"code/bits": 2.0, "quiz/accuracy": 0.9}), 1.0)
    none = {"coder": {"code/bits": 2.0, "quiz/accuracy": 0.0}}
    gains = bind(Pareto(normalize="ratio"), expert_scores=none).fitness(
        {"code/bits": 2.0, "quiz/accuracy": 0.1}
    )
    np.testing.assert_allclose(gains, [1.0, 0.1])  # what nobody solves counts as it is
    negative = {"coder": {"code/bits": 2.0, "quiz/accuracy": -0.1}}
    with pytest.raises(ValueError, match=r"best expert's quiz/accuracy is -0.1, of which nothing"):
        bind(Pareto(normalize="ratio"), expert_scores=negative)


def test_a_tie_break_decides_between_equals_and_nothing_else() -> None:
    objective = bind(WeightedMean(weights={"code": 1, "quiz": 0}, tie_break="accuracy"))
    plain = bind(WeightedMean(weights={"code": 1, "quiz": 0}))
    equal = [
        objective.fitness({"code/bits": 2.5, "code/accuracy": accuracy})[0]
        for accuracy in (0.1, 0.2, 0.6)
    ]
    assert equal == sorted(set(equal))
    better = objective.fitness({"code/bits": 2.49, "code/accuracy": 0.1})[0]
    assert better > equal[2] > plain.fitness({"code/bits": 2.5})[0]
    scores = {"code/bits": Score(2.5, np.array([2.5])), "code/accuracy": Score(0.6, np.ones(1))}
    assert objective(scores)[1].tolist() == plain(scores)[1].tolist()
    assert objective.keys == ("code/bits", "code/accuracy")
    extremes = [
        objective.fitness({"code/bits": 2.5, "code/accuracy": accuracy})[0]
        for accuracy in (math.nan, -1e9, 0.2, 1e9)
    ]
    assert extremes[0] == extremes[1] < extremes[2] < extremes[3]
    assert better > extremes[3], "a score far beyond the models that give the unit"
    assert objective.fitness({"code/bits": 2.5})[0] == extremes[0]
    same = {name: {**scores, "code/accuracy": 0.2} for name, scores in EXPERTS.items()}
    assert bind(WeightedMean(tie_break="accuracy"), expert_scores=same).ties[-1].task == "quiz"


def test_a_preferred_metric_judges_the_tasks_that_have_it() -> None:
    objective = bind(WeightedMean(prefer="accuracy", normalize="ratio"))
    assert [term.key for term in objective.terms] == ["code/accuracy", "quiz/accuracy"]
    named = WeightedMean(prefer="accuracy", metrics={"code": "bits"})
    assert [term.key for term in bind(named).terms] == ["code/bits", "quiz/accuracy"]
    assert [term.key for term in bind(WeightedMean()).terms] == list(MAIN.values())
