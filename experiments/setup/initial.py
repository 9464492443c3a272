"""Initial points: where a search starts, whatever its space and strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping
from merging.method import MergeMethod
from merging.plan import MergePlan, Plan, uniform_plan
from merging.seeding import stable_seed
from merging.spaces.full_weights import weighted_start
from merging.stacks.layer_stack import layers_of
from merging.zoo.store import SOURCE
from merging.zoo_recipes import load_recipe
from search.strategies.mergevolve import initial_weights


@dataclass(frozen=True)
class StartScores:
    """What is known of the search items before the search.

    Args:
        experts: fitness of every expert; None: it could not be scored.
        score: scores a plan under a name, once per run; None: it could not be scored.
    """

    experts: Mapping[str, float | None]
    score: Callable[[str, Plan], float | None]

    def scored(self) -> dict[str, float]:
        """Returns the fitness of the experts that have one.

        Raises:
            ValueError: none has.
        """
        known = {name: fitness for name, fitness in self.experts.items() if fitness is not None}
        if not known:
            raise ValueError("initial: no expert could be scored: choose initial=average")
        return known

    def telling(self, on_score: Callable[[], object]) -> StartScores:
        """Returns the same; `on_score` is called after every plan that is scored."""

        def score(name: str, plan: Plan) -> float | None:
            fitness = self.score(name, plan)
            on_score()
            return fitness

        return replace(self, score=score)

    def below(self, name: str) -> StartScores:
        """Returns the same with the names of what is scored below `name`."""
        return StartScores(self.experts, lambda inner, plan: self.score(f"{name}.{inner}", plan))


class Initial(Protocol):
    """One way to choose the point that a search starts from."""

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan | None:
        """Returns the point; None: the space's own start.

        Raises:
            ValueError: there is no such point; names the option.
        """
        ...


@dataclass(frozen=True)
class Own:
    """The space's own start: the axes' starts, the base for full weights, the first founder."""

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan | None:
        """Returns None."""
        return None


@dataclass(frozen=True)
class Weighted:
    """``base + scale sum_i w_i delta_i`` with given weights.

    Args:
        weights: expert to weight, 0 where not named; null: 1 / experts for each.
        scale: of the sum; 0 is the base.
    """

    weights: Mapping[str, float] | None = None
    scale: float = 1.0

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the weighted sum."""
        names = pool.expert_names
        if self.weights is None:
            return weighted_start(pool, [1 / len(names)] * len(names), scale=self.scale)
        unknown = sorted(set(self.weights) - set(names))
        if unknown:
            raise ValueError(
                f"initial.weights: there is no expert {unknown[0]!r}, only {', '.join(names)}"
            )
        return weighted_start(pool, [self.weights.get(n, 0.0) for n in names], scale=self.scale)


@dataclass(frozen=True)
class Scored:
    """The paper's: weights ``softmax(z / temperature)`` of the experts' fitness.

    An expert that could not be scored gets no weight.

    Args:
        temperature: small: the best expert alone; large: the mean of all.
        scale: of the sum; 1 in the released code.

    Source: MERGEvolve, arXiv 2606.28373, step 1.
    """

    temperature: float = 1.0
    scale: float = 1.0

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the weighted sum."""
        fitness = scores.scored()
        weights = initial_weights(list(fitness.values()), temperature=self.temperature)
        named = dict(zip(fitness, weights.tolist(), strict=True))
        return Weighted(named, self.scale).plan(pool, scores)


@dataclass(frozen=True)
class BestExpert:
    """The expert with the highest fitness on the search items, as it is; of equals the first."""

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the expert."""
        fitness = scores.scored()
        return Weighted({max(fitness, key=lambda name: fitness[name]): 1.0}).plan(pool, scores)


@dataclass(frozen=True)
class RandomWeights:
    """Normal weights around 0: a point without any quality, for comparison only.

    Args:
        spread: standard deviation of the weights.
    """

    seed: int = 0
    spread: float = 1.0

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the weighted sum."""
        rng = np.random.default_rng(stable_seed("initial", self.seed))
        drawn = self.spread * rng.standard_normal(len(pool.expert_names))
        return weighted_start(pool, drawn.tolist())


@dataclass(frozen=True)
class Static:
    """A static merge at its published defaults."""

    method: MergeMethod
    grouping: Grouping

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the merge."""
        return uniform_plan(self.method, self.grouping, pool)


@dataclass(frozen=True)
class FromRecipe:
    """Where another run ended, or any recipe over the same base and experts.

    Args:
        path: a recipe.json, or ``zoo:NAME`` of a recipe in a zoo.
    """

    path: str

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the recipe's plan.

        Raises:
            ValueError: it cannot be read, or is made of another base or other experts.
        """
        file = self.path
        if not file.startswith(SOURCE) and not Path(file).is_file():
            raise ValueError(f"initial.path: {file} does not exist: name a recipe.json")
        recipe = load_recipe(file)
        if recipe.base.sha256 != pool.base.sha256:
            raise ValueError(f"initial.path: {file} is made from another base than this run's")
        identities = dict(zip(pool.expert_names, pool.identities, strict=True))
        for name, ingredient in recipe.experts.items():
            if identities.get(name) != ingredient.sha256:
                raise ValueError(
                    f"initial.path: {file} is made with expert {name!r}, which this run has not "
                    "under that name with that content: give the run the same experts"
                )
        if layers_of(recipe.plan.weights(pool)) is not None:
            raise ValueError(
                f"initial.path: {file} is a stack of layers, from where no space goes on: name a "
                "recipe of another kind"
            )
        if set(recipe.experts) != set(identities) and not isinstance(recipe.plan, MergePlan):
            raise ValueError(
                f"initial.path: {file} is a {recipe.plan.name} of {', '.join(recipe.experts)} "
                "alone, which means something else among other experts: give the run the same "
                "experts, or take a recipe of coefficients"
            )
        return recipe.plan


@dataclass(frozen=True)
class BestOf:
    """Of several points the one with the highest fitness on the search items.

    Args:
        of: name to point; at least one; the first of equals is taken.
    """

    of: Mapping[str, Initial]

    def plan(self, pool: ExpertPool, scores: StartScores) -> Plan:
        """Returns the best point's plan.

        Raises:
            ValueError: there is none, or none could be scored.
        """
        best: tuple[float, Plan] | None = None
        for name, initial in self.of.items():
            plan = initial.plan(pool, scores.below(name))
            if plan is None:
                raise ValueError(f"initial.of.{name}: a space's own start cannot be compared")
            fitness = scores.score(name, plan)
            if fitness is not None and (best is None or fitness > best[0]):
                best = fitness, plan
        if best is None:
            raise ValueError(
                f"initial.of: none of {', '.join(self.of) or 'no points'} has a score"
            )
        return best[1]


def scored_plans(initial: Initial, pool: ExpertPool) -> list[Plan]:
    """Returns the plans that the choice of a start scores, besides the experts."""
    plans: list[Plan] = []

    def score(name: str, plan: Plan) -> float:
        plans.append(plan)
        return 0.0

    initial.plan(pool, StartScores(dict.fromkeys(pool.expert_names, 0.0), score))
    return plans


def recipes_of(initial: Initial) -> list[str]:
    """Returns the recipes, as `load_recipe` takes them, that a start is taken from; most: none.

    What their search has spent on private data counts for what is searched from there.
    """
    if isinstance(initial, FromRecipe):
        return [initial.path]
    if isinstance(initial, BestOf):
        return [path for part in initial.of.values() for path in recipes_of(part)]
    return []
