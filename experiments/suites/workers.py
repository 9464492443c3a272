"""The processes of a suite: so many runs at a time, none of which can end the others."""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from hydra import compose, initialize_config_module

from experiments.reports.table import duration
from experiments.runs.directory import RunLocked
from experiments.runs.errors import UserError
from experiments.runs.processes import process_pool
from experiments.searches.run import run_search
from experiments.setup.own_tasks import with_tasks
from experiments.suites.plan import PlannedRun
from experiments.suites.shared_references import share

log = logging.getLogger(__name__)

_LOCK_S = 10  # how long a run waits for a process of an earlier start to let go of it


def run_all(runs: Sequence[PlannedRun], workers: int, search_path: str | None) -> dict[Path, str]:
    """Runs all of them, those that are finished at no cost; returns why which directories failed.

    The first run of a setting comes first: it makes the experts, and scores them and the base for
    all others.

    Args:
        search_path: directory with the user's own configuration; None: there is none.
    """
    failures: dict[Path, str] = {}
    first = {run.setting: run for run in reversed(runs)}
    others = [run for run in runs if run is not first[run.setting]]
    finished = {run.directory for run in runs if (run.directory / "summary.json").is_file()}
    done = 0
    for wave in (list(first.values()), others):
        began, new, todo = time.monotonic(), 0, sum(run.directory not in finished for run in wave)
        with process_pool(workers) as pool:
            futures = {
                pool.submit(_run_one, run, first[run.setting].directory, search_path): run
                for run in wave
            }
            try:
                for future in as_completed(futures):
                    run, done = futures[future], done + 1
                    new += run.directory not in finished
                    reason = _reason(future, run)
                    if reason is not None:
                        failures[run.directory] = reason
                    left = (time.monotonic() - began) / max(new, 1) * (todo - new)
                    log.info(
                        "%d/%d runs, %s %s seed %d %s%s",
                        done,
                        len(runs),
                        run.setting,
                        run.variant,
                        run.seed,
                        "done" if reason is None else f"failed: {reason}",
                        # the first wave also makes experts: it says nothing of those to come
                        f", about {duration(left)} left" if new and wave is others else "",
                    )
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return failures


def refuse_failures(failures: Mapping[Path, str], count: int, what: str) -> None:
    """Raises UserError where some of `count` runs have failed; names the first of them."""
    if failures:
        directory, reason = next(iter(failures.items()))
        raise UserError(f"{len(failures)} of {count} {what} failed; {directory}: {reason}")


def _output(run: PlannedRun) -> Path:
    """Returns where a run's own output goes: what a private one says tells of its items."""
    return Path(os.devnull) if run.private else run.directory.with_suffix(".log")


def _reason(future: Future[str | None], run: PlannedRun) -> str | None:
    """Returns why a run failed; None: it did not. What was not foreseen is kept in full."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return "its process, or that of a run beside it, was killed: start the command again"
    said = f"{type(error).__name__}: {error}"
    if run.private:
        log.error("%s seed %d", run.variant, run.seed, exc_info=error)
        return said
    with _output(run).open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return f"{said} (see {_output(run)})"


def _run_one(run: PlannedRun, first: Path, search_path: str | None) -> str | None:
    """Runs one search in this process, its output in a file beside it; returns why it failed.

    `first` is the directory whose scores of base and experts it takes over.
    """
    overrides, directory = run.overrides, run.directory
    if search_path is not None:
        overrides = [*overrides, f"hydra.searchpath=['file://{search_path}']"]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _output(run).open("a", encoding="utf-8", buffering=1) as output:
        logging.basicConfig(stream=output, level=logging.INFO, force=True)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            with initialize_config_module("conf", version_base="1.3"):
                config = with_tasks(compose("search", overrides=overrides))
            if directory != first:
                share(first, directory, config)
            began = time.monotonic()
            while True:
                try:
                    run_search(config, estimate=False)
                except RunLocked as error:
                    if time.monotonic() - began > _LOCK_S:
                        return str(error)
                    time.sleep(1)
                except UserError as error:
                    return str(error)
                else:
                    return None
