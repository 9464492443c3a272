"""The steps of a search, from reference scores to the report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from evaluators.evaluator import Score
from evaluators.panel import Panel
from experiments.reports.model_card import model_card
from experiments.reports.report import write_report
from experiments.runs.directory import check_ingredients, run_identity
from experiments.runs.errors import UserError, explained
from experiments.runs.model_scores import IN_HULL, ModelScores
from experiments.scoring.choose import open_evaluation, open_pool
from experiments.searches.certificate import Ended, InHull, write_certificate
from experiments.searches.progress import Progress
from experiments.searches.references import References
from experiments.searches.summary import Finished, write_summary
from experiments.searches.tracking import NoTracker, Tracker
from experiments.setup import in_hull
from experiments.setup.common_items import CommonItems
from experiments.setup.initial import StartScores, recipes_of
from experiments.setup.study import Study
from merging.files import write_text
from merging.plan import Plan
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe, dtype_name
from merging.saving.save import save_model
from merging.saving.save_adapter import save_adapter
from search.loop.generational import search
from search.loop.history import History, Record
from search.loop.session import Budget, SearchFailed, SearchResult
from search.loop.steady_state import search_steadily
from search.objective import BoundObjective, Objective
from search.winners.rescoring import rescore
from search.winners.selection import Finalist, finalists, second_look, shrunken_finalists

log = logging.getLogger(__name__)


class SearchSteps:
    """The steps of a search; each is skipped where an earlier start has done it."""

    def __init__(
        self,
        config: DictConfig,
        study: Study,
        run: Path,
        budget: Budget,
        tracker: Tracker,
        references: References | None = None,
    ) -> None:
        self._config, self._study, self._run = config, study, run
        self._budget, self._tracker = budget, tracker
        self._references = references or References(study, run / "references.jsonl")
        self._history = History(run)
        self._common = CommonItems.open(config, study.search_on)

    def finish(self) -> None:
        """Runs every step that is left; the report comes last and marks the run as finished."""
        resolved = OmegaConf.to_container(self._config, resolve=True)
        assert isinstance(resolved, dict)
        options = {str(key): value for key, value in resolved.items()}
        self._tracker.start(options, self._run, run_identity(self._config))
        with explained():  # the first whole panel: an evaluator that cannot score says so here
            rivals = self._references.score(self._study.search_on)
        objective = self._bind(self._study.search_on, rivals)
        with explained():
            self._study = self._study.started(self._scouting(objective, rivals))
            check_ingredients(self._run, self._study.ingredients())
        result, item_evaluations = self._comparable(self._search(objective), objective)
        ranked = self._choose(result, objective)
        winner = ranked[0]
        recipe = self._write_model(winner)
        self._write_adapter(recipe.plan)
        inside = self._in_hull(objective, result)
        report = self._report(winner)
        reporting = None
        if report is not None and self._study.report_on is not None:
            reporting = self._bind(self._study.report_on, report)
        ended = Ended(
            run=self._run,
            study=self._study,
            result=result,
            finalists=ranked,
            rivals=rivals,
            inside=inside,
            winner=None if report is None else report["evolved"],
            reporting=reporting,
        )
        certificate = write_certificate(ended)
        finished = Finished(
            config=self._config,
            study=self._study,
            run=self._run,
            rivals=rivals,
            objective=objective,
            result=result,
            finalists=ranked,
            report=report,
            reporting=reporting,
            recipe=recipe,
            certificate=certificate,
            inside=inside,
            item_evaluations=item_evaluations,
            ledger=self._ledger(recipe.plan),
        )
        summary = write_summary(finished)
        if (self._run / "model").exists():
            card = model_card(summary, recipe.to_json())
            write_text(self._run / "model" / "README.md", card)
        self._tracker.finish(summary, [self._run / "recipe.json"])
        write_report(self._run)

    def _scouting(self, objective: Objective, rivals: Mapping[str, ModelScores]) -> StartScores:
        """Returns what the search items say of the experts, and of any other point when asked."""

        def fitness(rival: ModelScores) -> float | None:
            if rival.failure is not None:
                return None
            return float(np.mean(objective.fitness(rival.scores)))

        def score(name: str, plan: Plan) -> float | None:
            panel, held = self._study.search_on, self._study.held
            return fitness(
                self._references.score_one(name, "start", panel, lambda: plan.weights(held))
            )

        experts = {r.name: fitness(r) for r in rivals.values() if r.kind == "expert"}
        return StartScores(experts, score)

    def _bind(self, panel: Panel, rivals: Mapping[str, ModelScores]) -> Objective:
        """Returns the objective, normalised by base and experts on the panel's own split."""
        try:
            bound: Objective = self._study.objective.bind(
                panel.directions,
                panel.main,
                rivals["base"].scores,
                {r.name: r.scores for r in rivals.values() if r.kind == "expert"},
            )
        except ValueError as error:
            raise UserError(f"{panel.split} items: {error}") from error
        return bound

    def _loop(self, objective: Objective) -> Callable[..., SearchResult]:
        """Returns the search, from its strategy and what scores its candidates."""
        study = self._study
        if self._config.asynchronous:
            return partial(search_steadily, study.strategy, open_pool(study))  # type: ignore[arg-type]
        return partial(search, study.strategy, open_evaluation(study, self._common, objective))

    def _search(self, objective: Objective) -> SearchResult:
        study, run = self._study, self._loop(objective)
        mode: Literal["bar", "log"] = "bar" if sys.stderr.isatty() else "log"
        with Progress(self._budget, objective, mode=mode) as progress:

            def on_record(record: Record, replayed: bool) -> None:
                progress.update(record, replayed)
                self._tracker.log(record, replayed)

            return run(
                objective,
                self._history,
                self._budget,
                encode=study.space.to_json,
                canonical=lambda genome: study.space.to_json(study.space.canonical(genome)),
                on_record=on_record,
            )

    def _comparable(self, result: SearchResult, objective: Objective) -> tuple[SearchResult, int]:
        """Returns the result with records that can be compared, and how many items were asked.

        Where every generation has items of its own, these are the best few of all generations,
        twice as many as there are finalists, scored once more on all search items.
        """
        panel = self._study.search_on
        if self._common is None:
            return result, _items_asked(result, panel.item_count)
        scorer = self._study.scorer(panel)

        def evaluate(record: Record) -> dict[str, Score]:
            space = self._study.space
            return scorer(space.decode(space.from_json(record.genome)))

        again = rescore(
            result.records,
            2 * self._config.finalists,
            evaluate,
            objective,
            self._run / "rescored.jsonl",
        )
        items = result.evaluations * self._common.item_count + len(again) * panel.item_count
        return replace(result, records=tuple(again)), items

    def _choose(self, result: SearchResult, objective: Objective) -> list[Finalist]:
        """Returns the best few, the winner first, as ``choose`` says."""
        if self._config.choose == "second_look":
            return self._second_look(result)
        if not isinstance(objective, BoundObjective) or objective.weights is None:
            raise UserError("choose=shrinkage needs an objective with one number, not several")
        panel = self._study.search_on
        weights = dict(zip([t.task for t in objective.terms], objective.weights, strict=True))
        strata = [(len(panel.evaluators[task].items), each) for task, each in weights.items()]
        with explained():
            return shrunken_finalists(result.records, self._config.finalists, strata)

    def _second_look(self, result: SearchResult) -> list[Finalist]:
        """Returns the best few, the winner first, ranked on items that were not ranked on yet."""
        study, panel = self._study, self._study.select_on
        if panel is None:
            best = finalists(result.records, self._config.finalists)
            unseen = [
                Finalist(r.id, r.genome, r.fitness, {}, None)
                for r in best
                if r.fitness is not None
            ]
            return sorted(unseen, key=lambda f: (-float(np.mean(f.search)), f.id))
        selecting = self._bind(panel, self._references.score(panel, kinds=("base", "expert")))
        scorer = study.scorer(panel)

        def evaluate(record: Record) -> dict[str, Score]:
            return scorer(study.space.decode(study.space.from_json(record.genome)))

        return second_look(
            result.records,
            self._config.finalists,
            evaluate,
            selecting,
            self._run / "finalists.jsonl",
        )

    def _write_model(self, winner: Finalist) -> Recipe:
        """Writes the recipe and, from the experts on disk, the model; as `rebuild` does."""
        study = self._study
        plan = study.space.plan(study.space.from_json(winner.genome))
        dtype = study.machine.save_dtype
        ledger = self._ledger(plan)
        privacy = ledger.describe()
        recipe = Recipe.of(study.pool, plan, dtype=dtype_name(dtype), privacy=privacy)
        recipe.save(self._run / "recipe.json")
        if study.save_model and not (self._run / "model").exists():
            weights = plan.weights(study.pool, dtype=dtype)
            save_model(study.pool, weights, self._run / "model", dtype=dtype, ledger=ledger)
        return recipe

    def _ledger(self, plan: Plan) -> Ledger:
        """Returns what the private data of experts, search and starting point cost."""
        ledger = Ledger.of(self._study.pool, plan, searched=True)
        for path in recipes_of(self._study.initial):
            if (known := Recipe.load(path).privacy) is not None:
                ledger = ledger.joined(Ledger.from_description(known))
        return ledger

    def _write_adapter(self, plan: Plan) -> None:
        """Writes the winner as an adapter of the asked rank and says what it leaves out."""
        rank, out = self._config.adapter_rank, self._run / "adapter"
        if rank is not None and not out.exists():
            pool = self._study.pool
            weights = plan.weights(pool, dtype=torch.float32)
            print(save_adapter(pool, weights, out, rank=rank, ledger=self._ledger(plan)))

    def _in_hull(self, objective: Objective, result: SearchResult) -> InHull | None:
        """Searches the experts' hull for as many evaluations, below ``in_hull``; None: not asked.

        Its winner is chosen as this run's is, and read on the held-out items as it would be saved.
        """
        parts = in_hull.companion(self._config, self._study.held, self._study.space)
        if parts is None:
            return None
        space, strategy = parts
        config = self._config.copy()
        config.common_items, config.asynchronous, config.space = None, False, config.in_hull.space
        study = replace(
            self._study,
            config=config,
            space=space,
            strategy=strategy,
            save_model=False,
            start=None,
        )
        folder = self._run / "in_hull"
        folder.mkdir(exist_ok=True)
        log.info("inside the hull: %d evaluations to compare with", result.evaluations)
        budget = Budget(evaluations=result.evaluations)
        inner = SearchSteps(config, study, folder, budget, NoTracker(), self._references)
        try:
            found = inner._search(objective)
            winner = inner._choose(found, objective)[0]
        except SearchFailed as error:
            log.warning("nothing inside the hull to compare with: %s", error)
            return None
        plan = inner._write_model(winner).plan
        report = None
        if study.report_on is not None:
            report = self._references.score_one(
                IN_HULL,
                "in_hull",
                study.report_on,
                lambda: plan.weights(study.held, dtype=study.machine.save_dtype),
            )
        scores = next(r.scores for r in found.records if r.id == winner.id)
        return InHull(found.evaluations, winner, scores, plan, report)

    def _report(self, winner: Finalist) -> dict[str, ModelScores] | None:
        """Reads the held-out items, once and for all models; None: there are none."""
        study, panel = self._study, self._study.report_on
        if panel is None:
            return None
        rivals = self._references.score(panel)
        plan = study.space.plan(study.space.from_json(winner.genome))
        rivals["evolved"] = self._references.score_one(
            "evolved",
            "evolved",
            panel,
            lambda: plan.weights(study.held, dtype=study.machine.save_dtype),
        )
        return rivals


def _items_asked(result: SearchResult, items: int) -> int:
    """Returns how many items were asked, of all candidates together."""
    own = (record for record in result.records if record.same_as is None)
    return sum(items if record.asked is None else record.asked for record in own)
