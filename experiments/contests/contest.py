"""A contest: many searches on equal terms, from one experiment file to one page of results.

The experiment file names worlds (experts, evaluators, budget), arms (what is compared) and seeds;
every arm runs in every world with every seed, as an ordinary run that `evomerge search` could
make by itself. Finished runs are not run again, so that the same command goes on after a stop.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.contests.plan import Entry, checked_plan, plan_entries
from experiments.contests.results import write_results
from experiments.contests.workers import run_all
from experiments.runs.errors import UserError
from experiments.runs.options import check_options
from experiments.setup.dry_run import rehearse
from merging.files import write_text

_OWN = ("experiment=", "+experiment=", "contest.", "+contest.", "~contest.", "name=", "runs=")


def check_contest(config: DictConfig) -> None:
    """Composes and rehearses every arm, and prints what would run.

    Raises:
        UserError: an arm cannot be composed or started.
    """
    plan, entries = _planned(config)
    done = sum((entry.run / "report.html").exists() for entry in entries)
    for table, content in plan["tables"].items():
        count = sum(entry.table == table for entry in entries)
        print(f"{table:<12} {len(content['arms'])} arms, {count} runs: {content['title']}")
    print(f"in all       {len(entries)} runs, {done} of them finished\nready")


def run_contest(config: DictConfig) -> float:
    """Runs what is left of a contest and writes its results.

    Returns:
        0.

    Raises:
        UserError: an arm cannot be composed or started, found before the first run; or runs have
            failed, after all have been tried and the results are written.
    """
    plan, entries = _planned(config)
    root = Path(config.runs) / str(config.name)
    print(f"{len(entries)} runs, {plan['workers']} at a time, in {root}", flush=True)
    began = time.time()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failures = run_all(entries, int(plan["workers"]), _search_path())
    text = write_results(plan, entries, failures, command=_command(), seconds=time.time() - began)
    for path in _outputs(plan, root):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        print(f"results   {path}")
    if failures:
        run, reason = next(iter(failures.items()))
        raise UserError(f"{len(failures)} of {len(entries)} runs failed; {run}: {reason}")
    return 0.0


def _planned(config: DictConfig) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the plan and its runs, every arm composed and rehearsed once per world."""
    try:
        plan = checked_plan(
            OmegaConf.to_container(config.contest, resolve=True, throw_on_missing=True)
        )
    except OmegaConfBaseException as error:
        raise UserError(f"contest: {str(error).splitlines()[0]}") from error
    foreign = [each for each in _given() if not each.startswith(_OWN)]
    if foreign:
        raise UserError(
            f"{foreign[0]} does not reach the runs of a contest: put it into contest.options, "
            "into a world or an arm"
        )
    entries = plan_entries(plan, Path(config.runs) / str(config.name))
    known: set[tuple[str, str, str]] = set()
    for entry in entries:
        if (key := (entry.table, entry.world, entry.arm)) not in known:
            known.add(key)
            _check_entry(entry)
    return plan, entries


def _check_entry(entry: Entry) -> None:
    try:
        config = compose("search", overrides=entry.overrides)
        check_options(config)
        rehearse(config)
    except (UserError, ValueError, HydraException, OmegaConfBaseException) as error:
        raise UserError(f"contest, {entry.world}, arm {entry.arm!r}: {error}") from error


def _given() -> Sequence[str]:
    """Returns what the command line overrides."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _command() -> str:
    """Returns the command without what does not change the results."""
    shown = [each for each in _given() if not each.startswith("runs=")]
    return shlex.join(["evomerge", "search", *shown])


def _search_path() -> str | None:
    """Returns the user's own configuration directory; None: there is none."""
    for source in HydraConfig.get().runtime.config_sources:
        if source.provider == "command-line":
            return str(Path(source.path).absolute())
    return None


def _outputs(plan: Mapping[str, Any], root: Path) -> list[Path]:
    """Returns where the page goes: beside a contest that was changed, the runs' own directory."""
    plain = all(each.startswith(("experiment=", "+experiment=", "runs=")) for each in _given())
    named = any(each.startswith("contest.results=") for each in _given())
    if plan["results"] is not None and not (plain or named):
        print(f"{plan['results']} is kept: this command changes the contest", file=sys.stderr)
    own = root / "RESULTS.md"
    return [own, Path(plan["results"])] if plan["results"] and (plain or named) else [own]
