"""Initial points, from what the search items say of the experts."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.setup.initial import (
    BestExpert,
    BestOf,
    FromRecipe,
    Initial,
    Own,
    RandomWeights,
    Scored,
    StartScores,
    Static,
    Weighted,
)
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.ties import Ties
from merging.plan import MergePlan, Plan, uniform_plan
from merging.recipe import Recipe
from search.strategies.mergevolve import initial_weights
from tests import builders
from tests.merging.memory_pool import random_pool

POOL = random_pool({"w": (4, 3)})
FITNESS = {"expert0": 0.25, "expert1": 0.75, "expert2": None}


def start_scores(scores: dict[str, float | None] | None = None) -> StartScores:
    def score(name: str, plan: Plan) -> float | None:
        assert scores is not None
        return scores[name]

    return StartScores(FITNESS, score)


def weights_of(initial: Initial) -> list[float]:
    plan = initial.plan(POOL, start_scores())
    assert isinstance(plan, MergePlan)
    knobs = plan.coefficients["model"]
    weights, scale = knobs["weight"], knobs["scale"]
    assert isinstance(weights, dict)
    assert isinstance(scale, float)
    return [scale * weights[name] for name in POOL.expert_names]


def test_weighted_points() -> None:
    assert Own().plan(POOL, start_scores()) is None
    assert weights_of(Weighted(scale=0.0)) == [0.0, 0.0, 0.0]
    assert weights_of(Weighted()) == [1 / 3] * 3
    assert weights_of(Weighted({"expert1": 2.0})) == [0.0, 2.0, 0.0]
    assert weights_of(BestExpert()) == [0.0, 1.0, 0.0]
    expected = initial_weights([0.25, 0.75], temperature=0.5).tolist()
    assert weights_of(Scored(temperature=0.5, scale=1.0)) == [*expected, 0.0]
    assert weights_of(RandomWeights(seed=1)) == weights_of(RandomWeights(seed=1))
    assert weights_of(RandomWeights(seed=1)) != weights_of(RandomWeights(seed=2))
    assert Static(Ties(), Whole()).plan(POOL, start_scores()) == uniform_plan(
        Ties(), Whole(), POOL
    )
    with pytest.raises(ValueError, match="there is no expert 'maths', only expert0, expert1"):
        Weighted({"maths": 1.0}).plan(POOL, start_scores())


def test_best_of_a_list() -> None:
    points: dict[str, Initial] = {"mean": Weighted(), "ties": Static(Ties(), Whole())}
    best = BestOf(points)
    ties = uniform_plan(Ties(), Whole(), POOL)
    assert best.plan(POOL, start_scores({"mean": 0.1, "ties": 0.2})) == ties
    assert best.plan(POOL, start_scores({"mean": None, "ties": -5.0})) == ties
    assert best.plan(POOL, start_scores({"mean": 0.2, "ties": 0.2})) != ties
    with pytest.raises(ValueError, match=r"initial\.of: none of mean, ties has a score"):
        best.plan(POOL, start_scores({"mean": None, "ties": None}))
    with pytest.raises(ValueError, match=r"initial\.of\.own: a space's own start cannot be com"):
        BestOf({"own": Own()}).plan(POOL, start_scores())
    nothing = StartScores(dict.fromkeys(POOL.expert_names), lambda name, plan: None)
    for initial in (Scored(), BestExpert()):
        with pytest.raises(ValueError, match="no expert could be scored: choose initial=average"):
            initial.plan(POOL, nothing)


def test_recipes_are_checked_against_the_pool(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    experts = builders.experts_of(base, 2)
    pool = ExpertPool.open(str(base), experts)
    plan = uniform_plan(Ties(), Whole(), pool)
    Recipe.of(pool, plan).save(tmp_path / "recipe.json")
    initial = FromRecipe(str(tmp_path / "recipe.json"))
    assert initial.plan(pool, start_scores()) == plan
    renamed = ExpertPool.open(str(base), {"a": experts["code"], "b": experts["prose"]})
    with pytest.raises(ValueError, match="is made with expert 'code', which this run has not"):
        initial.plan(renamed, start_scores())
    other = builders.llama(tmp_path / "other", seed=1)
    foreign = ExpertPool.open(str(other), {"code": experts["code"], "prose": experts["prose"]})
    with pytest.raises(ValueError, match="is made from another base than this run's"):
        initial.plan(foreign, start_scores())
    with pytest.raises(ValueError, match=r"initial\.path: .*nothing\.json does not exist"):
        FromRecipe(str(tmp_path / "nothing.json")).plan(pool, start_scores())
