"""The steps of a search, in their order; each is skipped where an earlier start has done it."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.runs.model_scores import IN_HULL, ModelScores
from experiments.runs.progress import ProgressBar
from experiments.runs.shown import shown, writing
from experiments.searches.certificate import write_certificate
from experiments.searches.disclosure import Disclosure, FullDisclosure
from experiments.searches.outcome import InHull, SearchOutcome
from experiments.searches.progress import Progress
from experiments.searches.published import card_of, shown_recipe
from experiments.searches.references import References
from experiments.searches.summary import write_summary
from experiments.searches.tracking import NoTracker, Tracker
from experiments.setup.ingredients import Ingredients
from experiments.setup.initial import Initial, recipes_of
from experiments.setup.problem import Problem
from merging.checkpoints.experts import ExpertPool
from merging.files import write_text
from merging.plan import Plan
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe, dtype_name
from merging.saving.save import save_model
from merging.saving.save_adapter import AdapterError, save_adapter
from merging.spaces.space import SearchSpace
from merging.weights import CheckpointError
from merging.zoo_recipes import load_recipe
from search.loop.history import History, Record
from search.loop.session import Budget, SearchFailed, SearchResult
from search.objective import Objective
from search.winners.selection import Finalist

log = logging.getLogger(__name__)


def run_loop(
    disclosure: Disclosure,
    problem: Problem,
    objective: Objective,
    history: History,
    budget: Budget,
    tracker: Tracker,
    what: str = "search",
    static: tuple[str, float] | None = None,
) -> SearchResult:
    """Searches until the budget is spent, and tells tracker and progress of every candidate.

    Args:
        static: name and fitness of the best static merge, which progress is told against.
    """
    space, loop = problem.space, disclosure.loop(problem, objective)
    progress = Progress(budget, objective.names, static)
    total = budget.evaluations
    with ProgressBar(total, what, "evaluation", leave=True, estimates=False) as bar:

        def on_record(record: Record, replayed: bool) -> None:
            if record.same_as is None:  # a repeat of an earlier one costs nothing
                progress.add(record)
                bar.update(note=progress.note())
            tracker.log(record, replayed)

        return loop(
            objective,
            history,
            budget,
            encode=space.to_json,
            canonical=lambda genome: space.to_json(space.canonical(genome)),
            on_record=on_record,
        )


def plan_of(space: SearchSpace[Any], scored: Finalist | Record) -> Plan:
    """Returns the plan of a candidate's genome."""
    return space.plan(space.from_json(scored.genome))


def ledger_of(pool: ExpertPool, initial: Initial, plan: Plan) -> Ledger:
    """Returns what the private data of experts and starting point cost."""
    ledger = Ledger.of(pool, plan, searched=True)
    for source in recipes_of(initial):
        if (known := load_recipe(source).privacy) is not None:
            ledger = ledger.joined(Ledger.from_description(known))
    return ledger


def recipe_of(ingredients: Ingredients, plan: Plan, ledger: Ledger) -> Recipe:
    """Returns the recipe of a plan over the run's experts, as it is to be saved."""
    dtype = dtype_name(ingredients.machine.save_dtype)
    return Recipe.of(ingredients.pool, plan, dtype=dtype, privacy=ledger.describe())


def write_winner(
    ingredients: Ingredients,
    plan: Plan,
    ledger: Ledger,
    run: Path,
    *,
    model: bool = False,
    adapter_rank: int | None = None,
) -> tuple[Recipe, list[str]]:
    """Writes the recipe; model and adapter where asked for, from files as `rebuild` does.

    The second is what a reader has to know: why there is no adapter.

    Raises:
        CheckpointError: model or adapter cannot be written, says how the run goes on.
    """
    pool, dtype = ingredients.pool, ingredients.machine.save_dtype
    recipe = recipe_of(ingredients, plan, ledger)
    recipe.save(run / "recipe.json")
    notes = []
    try:
        if model and not (out := run / "model").exists():
            weights = plan.weights(pool, dtype=dtype)
            with writing(pool, weights, dtype, "saving the model") as read:
                save_model(pool, read, out, dtype=dtype, ledger=ledger)
        if adapter_rank is not None and not (out := run / "adapter").exists():
            weights = plan.weights(pool, dtype=torch.float32)
            with ProgressBar(len(weights), "saving the adapter", "tensor") as bar:
                read = shown(weights, lambda _: bar.update())
                saved = save_adapter(pool, read, out, rank=adapter_rank, ledger=ledger)
            print(saved)
    except AdapterError as error:
        notes.append(f"no adapter was written: {error}")
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; the search is done and kept: the same line goes on from here, also with "
            "save_model=false adapter_rank=null"
        ) from error
    return recipe, notes


def compare_in_hull(
    companion: Problem,
    disclosure: FullDisclosure,
    objective: Objective,
    evaluations: int,
    ledger: Callable[[Plan], Ledger],
) -> InHull | None:
    """Searches the experts' hull for as many evaluations; None: nothing there can be scored.

    Its winner is chosen as the run's is, and read on the held-out items as it would be saved.

    Args:
        companion: the space inside the hull, and its strategy.
        disclosure: of the companion; what it writes goes to its directory.
        ledger: what a plan's private data cost.
    """
    folder = disclosure.run
    folder.mkdir(exist_ok=True)
    log.info("inside the hull: %d evaluations to compare with", evaluations)
    budget, history = Budget(evaluations=evaluations), History(folder)
    try:
        result = run_loop(
            disclosure, companion, objective, history, budget, NoTracker(), "inside the hull"
        )
        winner = disclosure.choose(companion, result, objective)[0]
    except SearchFailed as error:
        log.warning("nothing inside the hull to compare with: %s", error)
        return None
    plan, references = plan_of(companion.space, winner), disclosure.references
    write_winner(references.ingredients, plan, ledger(plan), folder)
    report = None
    if (panel := references.ingredients.panels.get("report")) is not None:
        report = references.score_saved(IN_HULL, "in_hull", panel, plan)
    scores = next(record.scores for record in result.records if record.id == winner.id)
    return InHull(result.evaluations, winner, scores, plan, report)


def level_of_statics(
    models: Mapping[str, ModelScores], objective: Objective
) -> tuple[str, float] | None:
    """Returns name and fitness of the best static merge; None: there is none, or several parts."""
    for name in best_statics(models.values(), objective, 1):
        fitness = next(
            m.judged(objective).fitness
            for m in models.values()
            if m.kind == "static" and m.name == name
        )
        if fitness is not None and len(fitness) == 1:
            return name, fitness[0]
    return None


def best_statics(
    models: Iterable[ModelScores], objective: Objective, count: int | None
) -> list[str]:
    """Returns the static merges with the best fitness on the search items, of equals the first.

    Where none has one (these items are private) nothing tells which are best, and it is all,
    whatever `count`.

    Args:
        models: on the search items.
        count: how many; None: all that have a fitness.
    """
    statics = [model for model in models if model.kind == "static"]
    judged = [model.judged(objective) for model in statics]
    scored = [(float(np.mean(m.fitness)), m.name) for m in judged if m.fitness is not None]
    best = sorted(scored, key=lambda pair: -pair[0])[:count]
    return [name for _, name in best] if scored else [model.name for model in statics]


def read_held_out(
    references: References, plan: Plan, statics: Collection[str]
) -> Mapping[str, ModelScores] | None:
    """Reads the held-out items, once and for all models; None: there are none.

    Of the static merges it asks `statics` alone.

    The winner, as it is saved, is asked the selection items too, for the sake of its items there.
    """
    report, panels = None, references.ingredients.panels
    if (panel := panels.get("report")) is not None:
        report = references.score(panel, statics=statics, winner=plan)
    if (panel := panels.get("selection")) is not None:
        references.score_saved("evolved", "evolved", panel, plan)
    return report


def write_results(
    outcome: SearchOutcome, tracker: Tracker, keep: Callable[[SearchOutcome], None]
) -> None:
    """Writes certificate, summary, model card and, as it marks the run as finished, the report.

    Args:
        keep: writes what is kept elsewhere, before the run counts as finished.
    """
    from experiments.reports.report import write_report  # imports matplotlib

    run = outcome.run
    log.info("writing certificate, summary and report")
    certificate = write_certificate(outcome)
    (run / "report.html").unlink(missing_ok=True)  # an older one would mark this summary
    summary = write_summary(outcome, certificate)
    if (run / "model").exists():
        ingredients, recipe = outcome.references.ingredients, outcome.recipe
        card = card_of(ingredients, summary, recipe.to_json(), run)
        write_text(run / "model" / "README.md", card)
        shown_recipe(recipe).save(run / "model" / "recipe.json")
    keep(outcome)
    try:
        tracker.finish(summary, [run / "recipe.json"])
    finally:  # who only watches does not keep the report back
        with ProgressBar(1, "writing the report", "page") as bar:
            write_report(run)
            bar.update()
