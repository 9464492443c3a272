"""A benchmark suite: many searches on equal terms, from one experiment file to one page.

The experiment file names settings (experts, evaluators, budget), variants (what is compared) and
seeds; every variant runs in every setting with every seed, as an ordinary run that `evomerge
search` could make by itself. Finished runs are not run again, so that the same command goes on
after a stop.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.runs.errors import UserError
from experiments.runs.options import check_options
from experiments.setup.dry_run import dry_run
from experiments.setup.own_tasks import with_tasks
from experiments.suites.command_line import only_experiment_named, overrides_given, shown_command
from experiments.suites.plan import PlannedRun, Suite, checked_suite, planned_runs
from experiments.suites.results import results_page, write_pages
from experiments.suites.workers import refuse_failures, run_all

_OWN = ("experiment=", "+experiment=", "suite.", "+suite.", "~suite.", "name=", "runs=", "fast=")


def check_suite(config: DictConfig) -> None:
    """Composes and tries every variant, and prints what would run; raises as `run_suite`."""
    suite, runs = _planned(config)
    done = sum((run.directory / "report.html").exists() for run in runs)
    for name, table in suite.tables.items():
        count = sum(run.table == name for run in runs)
        print(f"{name:<12} {len(table.variants)} variants, {count} runs: {table.title}")
    print(f"in all       {len(runs)} runs, {done} of them finished\nready")


def run_suite(config: DictConfig) -> float:
    """Runs what is left of a suite, writes its results and returns 0.

    Raises:
        UserError: a variant cannot be composed or started, found before the first run; or runs
            have failed, after all have been tried and the results are written.
    """
    suite, runs = _planned(config)
    root = Path(config.runs) / str(config.name)
    print(f"{len(runs)} runs, {suite.workers} at a time, in {root}", flush=True)
    began = time.time()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failures = run_all(runs, suite.workers, _search_path())
    seconds = time.time() - began
    text = results_page(suite, runs, failures, command=shown_command(), seconds=seconds)
    write_pages(_pages(suite, root), text)
    refuse_failures(failures, len(runs), "runs")
    return 0.0


def _planned(config: DictConfig) -> tuple[Suite, list[PlannedRun]]:
    """Returns the suite and its runs, every variant tried once per setting."""
    try:
        content = OmegaConf.to_container(config.suite, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"suite: {str(error).splitlines()[0]}") from error
    suite = checked_suite(content)
    foreign = [override for override in overrides_given() if not override.startswith(_OWN)]
    if foreign:
        raise UserError(
            f"{foreign[0]} does not reach the runs of a suite: put it into suite.options, "
            "into a setting or a variant"
        )
    runs = planned_runs(suite, Path(config.runs) / str(config.name))
    return suite, marked(runs)


def marked(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs, those on private items marked; every variant is tried once per setting."""
    private: dict[tuple[str, str, str], bool] = {}
    for run in runs:
        if (key := (run.table, run.setting, run.variant)) not in private:
            private[key] = _dry_run(run)
    return [replace(run, private=private[run.table, run.setting, run.variant]) for run in runs]


def _dry_run(run: PlannedRun) -> bool:
    """Tries a variant; returns whether its items are private."""
    try:
        config = compose("search", overrides=run.overrides)
        check_options(config)
        return dry_run(with_tasks(config)).privacy is not None
    except (UserError, ValueError, HydraException, OmegaConfBaseException) as error:
        raise UserError(f"suite, {run.setting}, variant {run.variant!r}: {error}") from error


def _search_path() -> str | None:
    """Returns the user's own configuration directory; None: there is none."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.provider == "command-line":
            return str(Path(source.path).absolute())
    return None


def _pages(suite: Suite, root: Path) -> list[Path]:
    """Returns where the page goes: of a suite that was changed only beside its runs."""
    named = any(override.startswith("suite.results=") for override in overrides_given())
    if suite.results is None:
        return [root / "RESULTS.md"]
    if not (named or only_experiment_named()):
        print(f"{suite.results} is kept: this command changes the suite", file=sys.stderr)
        return [root / "RESULTS.md"]
    return [root / "RESULTS.md", Path(suite.results)]
