"""How a search scores its generations: chosen from the configuration, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from evaluators.evaluator import Score
from evaluators.panel import Panel
from experiments.scoring.population import PopulationEvaluation, unit_size
from experiments.scoring.racing import RacingEvaluation
from experiments.setup.asking import LocalRaceClient, Parts, RaceFactory
from experiments.setup.common_items import CommonItems
from experiments.setup.racing_checks import open_racing
from experiments.setup.study import Study
from search.loop.evaluation import ByGeneration, Evaluation, OneByOne
from search.loop.steady import WorkerPool
from search.objective import Objective


def open_evaluation(
    study: Study, common: CommonItems | None, objective: Objective
) -> Evaluation[Any]:
    """Returns what scores the generations of a study, where its execution says.

    Args:
        study: started.
        common: the items of every generation; None: all search items for all.
        objective: bound on the search items; read where candidates are raced.
    """
    if (racing := open_racing(study.config)) is not None:
        opening = study.execution.opening(own_opening(study), study.order, study.space.to_json)
        return RacingEvaluation(racing, study.search_on, objective, opening, study.seed)
    own = own_evaluation(study, common)
    return study.execution.evaluation(own, study.order, study.space.to_json)


def open_bench(study: Study) -> WorkerPool[Any]:
    """Returns what scores single candidates of a study, some at a time."""
    own = own_evaluation(study, None)
    return study.execution.bench(own, study.order, study.space.to_json)


def own_opening(study: Study) -> RaceFactory:
    """Returns what asks the candidates of a study's races in this process."""
    panel = study.search_on
    return partial(LocalRaceClient, study.space.decode, study.scorer(panel), Parts(panel.requests))


def own_evaluation(study: Study, common: CommonItems | None) -> Evaluation[Any]:
    """Returns what scores the generations of a study in this process.

    Args:
        study: started.
        common: the items of every generation; None: all search items for all.
    """

    def score(genome: Any, panel: Panel = study.search_on) -> Mapping[str, Score]:
        return study.scorer(panel)(study.space.decode(genome))

    def panel(generation: int) -> Panel:
        return study.search_on if common is None else common.of(generation)

    size = unit_size(study.config.together, study)
    if size > 1:
        return PopulationEvaluation(study, panel, own_items=common is not None, size=size)
    if common is not None:
        return ByGeneration(lambda genome, generation: score(genome, common.of(generation)))
    return OneByOne(score)
