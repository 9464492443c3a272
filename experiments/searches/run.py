"""One search from configuration to report: `evomerge search` and `evomerge check`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from evaluators.requests import EvaluationError
from experiments.reports.table import table
from experiments.runs.directory import clear_drafts, locked, make_run, plan_run
from experiments.runs.errors import UserError, explained
from experiments.runs.files import read_json
from experiments.runs.options import check_options
from experiments.searches.private_steps import destroy_secrets, open_steps
from experiments.searches.tracking import Tracker
from experiments.setup import assemble, in_hull
from experiments.setup.preflight import check
from experiments.setup.private_checks import budget_line
from experiments.setup.study import Study
from merging.method import MergeError
from merging.weights import CheckpointError
from search.loop.history import HistoryError
from search.loop.jsonl import DamagedFileError
from search.loop.session import Budget, SearchFailed

# What may go wrong in mid-run and is no fault of the program: the message says what to do.
_EXPLAINED = (
    SearchFailed,
    HistoryError,
    DamagedFileError,
    EvaluationError,
    MergeError,
    CheckpointError,
    OSError,
)


def run_check(config: DictConfig) -> None:
    """Prints what is known before a search starts; raises UserError where it cannot start."""
    with explained():
        check_options(config)
        run = plan_run(config, _strategy_name())
        Budget(**config.budget)
        study = Study.open(config)
        found = check(study, run)
        lines = [*found.lines, *budget_line(config, study.strategy)]
    print("\n".join(lines))
    if config.budget.evaluations:
        minutes = found.seconds_per_candidate * config.budget.evaluations / 60
        print(f"search time about {minutes:.1f} min for {config.budget.evaluations} evaluations")
        if in_hull.companion(config, study.held, study.space) is not None:
            print("            and as long again inside the hull, to compare (in_hull=null: not)")
    print(f"run         {run}\nready")


def run_search(config: DictConfig) -> float:
    """Runs or continues the search of a configuration; a finished one is shown, not run again.

    Returns:
        The winner's fitness on the selection items (on the search items where there are none,
        the mean of several objectives), higher is better: what a sweeper may look at. The
        held-out score is never returned.
    """
    with explained():
        check_options(config)
        run = plan_run(config, _strategy_name())
        budget = Budget(**config.budget)
    if _is_finished(run):
        destroy_secrets(config, run)
        return _show(run)
    with explained():
        study = Study.open(config)
        found = check(study, run)
        make_run(run, config)
    with locked(run):
        clear_drafts(run)
        print("\n".join(found.lines))
        with explained():
            tracker: Tracker = assemble.open_partial(config.tracker)
            steps = open_steps(config, study, run, budget, tracker)
        try:
            steps.finish()
        except _EXPLAINED as error:
            raise UserError(f"{error} (run directory {run})") from error
        finally:
            study.execution.close()
    return _show(run)


def _strategy_name() -> str:
    if not HydraConfig.initialized():
        return "search"
    return str(HydraConfig.get().runtime.choices.get("strategy", "search"))


def _is_finished(run: Path) -> bool:
    return (run / "summary.json").exists() and (run / "report.html").exists()


def _show(run: Path) -> float:
    """Prints a finished run's table; returns the winner's fitness."""
    summary = read_json(run / "summary.json")
    print(table(summary))
    print(f"\nrun       {run}\nreport    {run / 'report.html'}")
    if (run / "model").exists():
        print(f"model     {run / 'model'}")
    return float(summary["fitness"])
