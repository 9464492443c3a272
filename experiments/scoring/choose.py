"""How a search scores its generations: chosen from the configuration, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evaluators.panel import Panel
from experiments.scoring.asking import LocalAsker
from experiments.scoring.population import PopulationPool, batch_size
from experiments.scoring.racing import RacingPool
from experiments.setup.common_items import CommonItems
from experiments.setup.racing_checks import open_racing
from experiments.setup.study import Study
from search.loop.evaluation import Batch, Evaluated, Evaluation, LocalPool
from search.loop.pool import Pool
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
        asker = _where_it_says(study, local_asker(study))
        pool = RacingPool(racing, study.search_on, objective, asker, study.seed)
        return Evaluation(pool, batch_size=None)
    evaluation = local_evaluation(study, common)
    return replace(evaluation, pool=_where_it_says(study, evaluation.pool))


def open_pool(study: Study) -> Pool[Batch[Any], Sequence[Evaluated]]:
    """Returns what scores single candidates of a study, where its execution says."""
    return _where_it_says(study, local_evaluation(study, None).pool)


def local_asker(study: Study) -> LocalAsker:
    """Returns what asks the candidates of a study's races in this process."""
    return LocalAsker(study.space.decode, study.model, study.search_on.requests)


def local_evaluation(study: Study, common: CommonItems | None) -> Evaluation[Any]:
    """Returns what scores the generations of a study in this process; see `open_evaluation`."""

    def panel(generation: int) -> Panel:
        return study.search_on if common is None else common.of(generation)

    size = batch_size(study.config.together, study)
    pool: Pool[Batch[Any], Sequence[Evaluated]] = (
        LocalPool(study.space.decode, lambda generation: study.scorer(panel(generation)))
        if size == 1
        else PopulationPool(study, panel)
    )
    return Evaluation(pool, own_items=common is not None, batch_size=size)


def _where_it_says(study: Study, local: Pool[Any, Any]) -> Pool[Any, Any]:
    return study.execution.pool(local, study.order, study.space.to_json)
