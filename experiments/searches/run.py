"""One search from configuration to report: `evomerge search` and `evomerge check`."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from evaluators.requests import EvaluationError, TransientFailure, is_out_of_memory
from experiments.runs.directory import (
    check_ingredients,
    clear_drafts,
    locked,
    make_run,
    plan_run,
    resolved,
    run_identity,
)
from experiments.runs.errors import UserError, explained
from experiments.runs.experiment_file import write_experiment
from experiments.runs.memory import Peak
from experiments.runs.model_scores import ModelScores
from experiments.runs.options import check_options
from experiments.runs.progress import ProgressBar
from experiments.runs.starts import check_starts, others_in_words
from experiments.scoring.choose import ScoringOptions
from experiments.searches.auto_start import account, charged, owed, weak_tasks
from experiments.searches.disclosure import Disclosure, FullDisclosure
from experiments.searches.finished import is_finished, show, strategy_name
from experiments.searches.keeping import check_place, check_room, keep
from experiments.searches.notes import span_warnings, unscored_again, unseen_winner
from experiments.searches.outcome import InHull, SearchOutcome
from experiments.searches.private_disclosure import PrivateDisclosure
from experiments.searches.private_key import destroy, release_by_seed, release_of
from experiments.searches.references import References
from experiments.searches.run_time import time_lines
from experiments.searches.steps import (
    best_statics,
    compare_in_hull,
    ledger_of,
    level_of_statics,
    plan_of,
    read_held_out,
    recipe_of,
    run_loop,
    write_results,
    write_winner,
)
from experiments.searches.tracking import DeferredTracker, Tracker
from experiments.setup import in_hull
from experiments.setup.assemble import open_part
from experiments.setup.common_items import CommonItems
from experiments.setup.dry_run import dry_run
from experiments.setup.ingredients import Ingredients, open_ingredients, worker_spec
from experiments.setup.initial import Initial, scored_plans
from experiments.setup.own_tasks import with_tasks
from experiments.setup.parts import SearchParts
from experiments.setup.preflight import check, memory_line
from experiments.setup.private_checks import budget_line
from experiments.setup.problem import Problem
from merging.method import MergeError
from merging.plan import Plan
from merging.privacy.ledger import Ledger
from merging.weights import CheckpointError
from search.loop.history import History, HistoryError
from search.loop.jsonl import DamagedFileError
from search.loop.session import Budget, SearchFailed, SearchResult
from search.objective import Objective

# What may go wrong in mid-run and is no fault of the program: the message says what to do.
_EXPLAINED = (
    SearchFailed,
    HistoryError,
    DamagedFileError,
    EvaluationError,
    TransientFailure,
    MergeError,
    CheckpointError,
    OSError,
)


def run_check(config: DictConfig) -> None:
    """Prints what is known before a search starts; raises UserError where it cannot start."""
    with explained():
        check_options(config)
        config = with_tasks(config)
        check_place(config)
        run = plan_run(config, strategy_name())
        Budget(**config.budget)
    with _ended(run), explained():
        parts = dry_run(config)
        _, trial, _, lines = _tried(config, parts, run, estimate=True)
        if parts.privacy is not None:
            lines.append(budget_line(config, parts.privacy, trial.strategy))
            check_starts()
            own = {str(release_of(run)), release_by_seed(run_identity(config))}
            known = others_in_words(parts.privacy.data, own)
            lines.append(f"            of this search alone; {known}")
    print("\n".join(lines))
    print(f"run         {run}\nready")


def run_search(config: DictConfig, *, estimate: bool = True) -> float:
    """Runs or continues the search of a configuration; a finished one is shown, not run again.

    Args:
        estimate: try out what takes long, and say how long the run will take.

    Returns:
        The winner's fitness on the selection items (on the search items where there are none,
        the mean of several objectives), higher is better: what a sweeper may look at. The
        held-out score is never returned.
    """
    with explained():
        check_options(config)
        config = with_tasks(config)
        check_place(config)
        run = plan_run(config, strategy_name())
        budget = Budget(**config.budget)
        finished = is_finished(run, config)
    if finished:
        with _sealed(run, config):  # a crash may have come before this
            return show(run, config)
    with _sealed(run, config), _ended(run), locked(run):
        parts, ingredients, common = _checked(config, run, estimate)
        with closing(parts.execution):
            with explained():
                history = History(run, timed=parts.privacy is None)
                tracker: Tracker = open_part(config.tracker)
                if parts.privacy is not None:
                    tracker = DeferredTracker(tracker)
                disclosure = _open_disclosure(config, parts, ingredients, common, run, history)
                check_ingredients(run, {"items": disclosure.items()})
            tracker.start(resolved(config), run, run_identity(config))
            objective, search, problem = _begun(config, parts, disclosure, run)
            left = charged(budget, problem.strategy, _starts(parts, disclosure))
            level = level_of_statics(search, objective)
            result = run_loop(disclosure, problem, objective, history, left, tracker, static=level)
            outcome = _conclude(config, parts, disclosure, problem, objective, search, result, run)
            write_results(outcome, tracker, partial(keep, config))
    return show(run, config)


@contextmanager
def _sealed(run: Path, config: DictConfig) -> Iterator[None]:
    """Destroys what must not be released with a private run as soon as it looks finished.

    Also where something has failed in the end, such as a tracker.
    """
    try:
        yield
    finally:
        if config.privacy and is_finished(run, config):
            destroy(run)


def _tried(
    config: DictConfig, parts: SearchParts, run: Path, estimate: bool
) -> tuple[Ingredients, Problem, CommonItems | None, list[str]]:
    """Returns ingredients, trial and common items once all was tried, and what that has shown."""
    with Peak(parts.machine.device) as peak:
        ingredients, trial = open_ingredients(config, parts)
        common = CommonItems.open(config, ingredients.panels["search"])
        lines = check(
            ingredients,
            trial,
            common,
            run,
            objective=config.objective,
            save_model=config.save_model,
        )
        if estimate:
            lines += time_lines(config, parts, ingredients, trial)
    if estimate:
        lines.append(memory_line(ingredients, peak.bytes))
    return ingredients, trial, common, lines + check_room(config, ingredients.pool)


def _checked(
    config: DictConfig, run: Path, estimate: bool
) -> tuple[SearchParts, Ingredients, CommonItems | None]:
    """Returns what a run is made of, once all is checked and its directory is there."""
    with explained():
        parts = dry_run(config)
        ingredients, _, common, lines = _tried(config, parts, run, estimate)
        make_run(run, config)
        lines += write_experiment(run, config)
        base, experts = ingredients.pool.base.sha256, ingredients.identities()
        check_ingredients(run, {"base": base, "experts": experts})
    clear_drafts(run)
    print("\n".join(lines))
    return parts, ingredients, common


def _begun(
    config: DictConfig, parts: SearchParts, disclosure: Disclosure, run: Path
) -> tuple[Objective, Mapping[str, ModelScores], Problem]:
    """Returns the objective, the references on the search items, the problem from its start."""
    references = disclosure.references
    ingredients = references.ingredients  # without what no step may read
    with explained():  # the first whole panel: an evaluator that cannot score says so here
        objective = references.bound(parts.objective)
        for line in span_warnings(run, objective):
            print(f"warning     {line}")
        search = references.score(ingredients.panels["search"])
        known = disclosure.start_scores(search, objective)
        held = ingredients.held
        points = len(scored_plans(parts.initial, held))
        with ProgressBar(points, "starts on search items", "point") as bar:
            start = parts.initial.plan(held, known.telling(bar.update))
        problem = Problem.open(config, held, start, config.seed)
        check_ingredients(run, {"start": problem.first.describe()})
    return objective, search, problem


def _starts(parts: SearchParts, disclosure: Disclosure) -> list[ModelScores]:
    """Returns what was scored to choose the start."""
    references = disclosure.references
    return references.starts(scored_plans(parts.initial, references.ingredients.held))


@contextmanager
def _ended(run: Path) -> Iterator[None]:
    """Explains what ends a run early."""
    try:
        yield
    except _EXPLAINED as error:
        raise UserError(f"{error} (run directory {run})") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}): free some, then run the same command "
            f"again (run directory {run})"
        ) from error


def _open_disclosure(
    config: DictConfig,
    parts: SearchParts,
    ingredients: Ingredients,
    common: CommonItems | None,
    run: Path,
    history: History,
) -> Disclosure:
    if parts.privacy is not None:
        begun = bool(history.records)
        return PrivateDisclosure(config, parts, ingredients, run, begun=begun)
    return FullDisclosure(
        run=run,
        references=References(ingredients, parts.baselines, run),
        scoring=ScoringOptions(
            execution=parts.execution,
            worker_spec=partial(worker_spec, config, ingredients),
            racing=parts.racing,
            common=common,
            together=config.together,
            seed=config.seed,
        ),
        asynchronous=config.asynchronous,
        choice=config.choose,
        count=config.finalists,
    )


def _conclude(
    config: DictConfig,
    parts: SearchParts,
    disclosure: Disclosure,
    problem: Problem,
    objective: Objective,
    search: Mapping[str, ModelScores],
    result: SearchResult,
    run: Path,
) -> SearchOutcome:
    """Chooses and writes the winner, and returns it beside all that it is measured against."""
    references = disclosure.references
    ingredients = references.ingredients
    result = replace(result, evaluations=result.evaluations + owed(problem.strategy))
    living = disclosure.population(problem, result) if config.zoo else []
    result, items = disclosure.comparable(problem, result, objective)
    items += owed(problem.strategy) * ingredients.panels["search"].item_count
    finalists = disclosure.choose(problem, result, objective)

    def ledger_for(plan: Plan) -> Ledger:
        return disclosure.charged(ledger_of(ingredients.pool, parts.initial, plan), result)

    plan = plan_of(problem.space, finalists[0])
    plans = {record.id: plan_of(problem.space, record) for record in living}
    ledger = ledger_for(plan)
    recipe, notes = write_winner(
        ingredients,
        plan,
        ledger,
        run,
        model=config.save_model,
        adapter_rank=config.adapter_rank,
    )
    inside = None
    if in_hull.has_companion(config, problem.space):
        ingredients.held.forget()  # orders and noise of a method that the companion lacks
        assert isinstance(disclosure, FullDisclosure), "refused in the dry run"
        inside = _inside(config, parts.initial, disclosure, objective, result.evaluations)
    statics = best_statics(search.values(), objective, parts.held_out)
    report = read_held_out(references, plan, statics)
    seen = next(record.scores for record in result.records if record.id == finalists[0].id)
    compared = (search, seen) if report is None else (report, report["evolved"].scores)
    return SearchOutcome(
        run=run,
        identity=run_identity(config),
        options=resolved(config),
        references=references,
        space=problem.space,
        objective=objective,
        search=search,
        result=result,
        item_evaluations=items,
        finalists=finalists,
        recipe=recipe,
        ledger=ledger,
        inside=inside,
        report=report,
        population={i: recipe_of(ingredients, p, ledger_for(p)) for i, p in plans.items()},
        notes=[
            *account(problem, _starts(parts, disclosure), objective, result.evaluations),
            *weak_tasks(problem.strategy, objective, *compared),
            *span_warnings(run, objective),
            *unscored_again(result.records),
            *unseen_winner(finalists[0]),
            *notes,
        ],
    )


def _inside(
    config: DictConfig,
    initial: Initial,
    disclosure: FullDisclosure,
    objective: Objective,
    evaluations: int,
) -> InHull | None:
    """Runs the companion search, by generations and on all search items."""
    ingredients = disclosure.references.ingredients
    spec = partial(worker_spec, in_hull.worker_config(config), ingredients)
    return compare_in_hull(
        in_hull.open_companion(config, ingredients.held),
        replace(
            disclosure,
            run=disclosure.run / "in_hull",
            scoring=replace(disclosure.scoring, common=None, worker_spec=spec),
            asynchronous=False,
        ),
        objective,
        evaluations,
        partial(ledger_of, ingredients.pool, initial),
    )
