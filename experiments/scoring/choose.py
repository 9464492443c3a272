"""How a search scores its generations: chosen from its options, behind one interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from evaluators.panel import Panel
from experiments.scoring.asking import LocalAsker
from experiments.scoring.population import PopulationPool, batch_size
from experiments.scoring.racing import RacingPool
from experiments.setup.common_items import CommonItems
from experiments.setup.execution import Execution, WorkerSpec
from experiments.setup.ingredients import Ingredients
from experiments.setup.problem import Problem
from merging.plan import Plan
from merging.spaces.space import SearchSpace
from search.loop.evaluation import Batch, Evaluated, Evaluation, LocalPool
from search.loop.pool import Pool
from search.objective import Objective
from search.racing.racing import Racing


@dataclass(frozen=True)
class ScoringOptions:
    """How the candidates of a search are scored.

    Args:
        worker_spec: start of a search to what a worker elsewhere makes its ingredients of.
        racing: rule by which candidates are dropped early; None: all are asked all items.
        common: the items of every generation; None: all search items for all.
        together: how many candidates share their passes; see `batch_size`.
    """

    execution: Execution
    worker_spec: Callable[[Plan | None], WorkerSpec]
    racing: Racing | None
    common: CommonItems | None
    together: int | str | None
    seed: int

    def placed(self, local: Pool[Any, Any], problem: Problem) -> Pool[Any, Any]:
        """Returns what works on the tasks of `local` where the execution says."""
        spec = partial(self.worker_spec, problem.start)
        return self.execution.pool(local, spec, problem.space.to_json)


def open_evaluation(
    ingredients: Ingredients, problem: Problem, options: ScoringOptions, objective: Objective
) -> Evaluation[Any]:
    """Returns what scores the generations of a search, where its execution says.

    Args:
        objective: bound on the search items; read where candidates are raced.
    """
    if options.racing is not None:
        asker = options.placed(local_asker(ingredients, problem.space), problem)
        panel = ingredients.panels["search"]
        keeps = getattr(problem.strategy, "keeps", ())  # ids count from the first generation
        pool = RacingPool(options.racing, panel, objective, asker, options.seed, keeps)
        return Evaluation(pool, batch_size=None)
    evaluation = local_evaluation(ingredients, problem.space, options.common, options.together)
    return replace(evaluation, pool=options.placed(evaluation.pool, problem))


def open_pool(
    ingredients: Ingredients, problem: Problem, options: ScoringOptions
) -> Pool[Batch[Any], Sequence[Evaluated]]:
    """Returns what scores single candidates on all items, where the execution says."""
    evaluation = local_evaluation(ingredients, problem.space, None, options.together)
    return options.placed(evaluation.pool, problem)


def local_asker(ingredients: Ingredients, space: SearchSpace[Any]) -> LocalAsker:
    """Returns what asks the candidates of races in this process."""
    requests, base = ingredients.panels["search"].requests, ingredients.held.base_weights()
    return LocalAsker(space.decode, ingredients.model, requests, base)


def local_evaluation(
    ingredients: Ingredients,
    space: SearchSpace[Any],
    common: CommonItems | None,
    together: int | str | None,
) -> Evaluation[Any]:
    """Returns what scores generations in this process; see `ScoringOptions`."""
    all_items = ingredients.panels["search"]

    def panel(generation: int) -> Panel:
        return all_items if common is None else common.of(generation)

    size = batch_size(together, ingredients, space)
    pool: Pool[Batch[Any], Sequence[Evaluated]] = (
        LocalPool(space.decode, lambda generation: ingredients.scorer(panel(generation)))
        if size == 1
        else PopulationPool(ingredients, space, panel)
    )
    return Evaluation(pool, own_items=common is not None, batch_size=size)
