"""A contest: many searches on equal terms, from one experiment file to one page of results.

The experiment file names worlds (experts, evaluators, budget), arms (what is compared) and seeds;
every arm runs in every world with every seed, as an ordinary run that `evomerge search` could
make by itself. Finished runs are not run again, so that the same command goes on after a stop.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from experiments.contest_results import write_results
from experiments.errors import UserError
from experiments.options import check_options
from experiments.rehearsal import rehearse
from experiments.shared_references import share
from experiments.table import duration

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One run of a contest.

    Args:
        table: which comparison it belongs to.
        world: experts, evaluators and budget.
        arm: what is compared, as the page names it.
        seed: of the run.
        options: overrides of the search's configuration.
        run: its directory.
    """

    table: str
    world: str
    arm: str
    seed: int
    options: tuple[str, ...]
    run: Path


def check_contest(config: DictConfig) -> None:
    """Composes and rehearses every arm, and prints what would run.

    Raises:
        UserError: an arm cannot be composed or started.
    """
    plan = _plain(config.contest)
    entries = list(plan_entries(plan, Path(config.runs) / str(config.name)))
    _check_all(entries)
    done = sum((entry.run / "report.html").exists() for entry in entries)
    for table, content in plan["tables"].items():
        count = sum(entry.table == table for entry in entries)
        print(f"{content['title']:<30} {len(content['arms'])} arms, {count} runs")
    print(f"{'in all':<30} {len(entries)} runs, {done} of them finished\nready")


def run_contest(config: DictConfig) -> float:
    """Runs what is left of a contest and writes its results.

    Returns:
        How many runs failed, 0 where all is well.

    Raises:
        UserError: an arm cannot be composed or started; found before the first run.
    """
    plan = _plain(config.contest)
    entries = list(plan_entries(plan, Path(config.runs) / str(config.name)))
    _check_all(entries)
    print(
        f"{len(entries)} runs, {plan['workers']} at a time, in {Path(config.runs) / config.name}"
    )
    began = time.time()
    failures = _run_all(entries, int(plan["workers"]))
    for run, reason in failures.items():
        print(f"failed: {run}: {reason}", file=sys.stderr)
    text = write_results(plan, entries, failures, seconds=time.time() - began)
    for path in _outputs(plan, config):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"results   {path}")
    return float(len(failures))


def plan_entries(plan: Mapping[str, Any], root: Path) -> Iterator[Entry]:
    """Yields every run: tables, in each the worlds, in each the seeds, in each the arms.

    The seed comes before the arm, so that a contest that is stopped early can be compared.
    """
    for table, content in plan["tables"].items():
        worlds = content.get("worlds") or list(plan["worlds"])
        for world in worlds:
            if world not in plan["worlds"]:
                raise UserError(
                    f"contest.tables.{table}.worlds: there is no world {world!r}, only "
                    f"{', '.join(plan['worlds'])}"
                )
            seeds = content.get("seeds") or plan["worlds"][world]["seeds"]
            for seed in seeds:
                for arm, options in content["arms"].items():
                    yield Entry(
                        table=table,
                        world=world,
                        arm=arm,
                        seed=int(seed),
                        options=(*plan["worlds"][world]["options"], *plan["options"], *options),
                        run=root / world / _slug(table) / f"{_slug(arm)}-s{seed}",
                    )


def _overrides(entry: Entry) -> list[str]:
    out = str(entry.run.absolute())
    return [*entry.options, f"seed={entry.seed}", f"out='{out}'", f"name='{entry.arm}'"]


def _check_all(entries: Sequence[Entry]) -> None:
    """Composes every run and rehearses every arm once per world."""
    known: set[tuple[str, str, str]] = set()
    places: dict[Path, Entry] = {}
    for entry in entries:
        if other := places.get(entry.run):
            raise UserError(
                f"contest: arms {other.arm!r} and {entry.arm!r} share the directory {entry.run}: "
                "give them names that differ in letters or digits"
            )
        places[entry.run] = entry
        if (key := (entry.table, entry.world, entry.arm)) in known:
            continue
        known.add(key)
        try:
            config = compose("search", overrides=_overrides(entry))
            check_options(config)
            rehearse(config)
        except (UserError, ValueError, HydraException) as error:
            raise UserError(f"contest, {entry.world}, arm {entry.arm!r}: {error}") from error


def _run_all(entries: Sequence[Entry], workers: int) -> dict[Path, str]:
    """Runs the entries in `workers` processes; returns run to reason for those that failed."""
    failures: dict[Path, str] = {}
    began, done = time.monotonic(), 0
    # The first run of a world makes its experts and scores them and the base for all others.
    first = {entry.world: entry for entry in reversed(entries)}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for wave in (list(first.values()), [e for e in entries if e is not first[e.world]]):
            futures: dict[Future[str | None], Entry] = {
                pool.submit(_run_one, _overrides(entry), entry.run, first[entry.world].run): entry
                for entry in wave
            }
            for future in as_completed(futures):
                entry, done = futures[future], done + 1
                reason = _reason(future, entry.run.with_suffix(".log"))
                if reason is not None:
                    failures[entry.run] = reason
                left = (time.monotonic() - began) / done * (len(entries) - done)
                log.info(
                    "%d/%d runs, %s %s seed %d %s, about %s left",
                    done,
                    len(entries),
                    entry.world,
                    entry.arm,
                    entry.seed,
                    "failed" if reason else "done",
                    duration(left),
                )
    return failures


def _reason(future: Future[str | None], output: Path) -> str | None:
    """Returns why a run failed; None: it did not. What was not foreseen is kept in full."""
    error = future.exception()
    if error is None:
        return future.result()
    with output.open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return f"{type(error).__name__}: {error} (see {output})"


def _run_one(overrides: list[str], run: Path, first: Path) -> str | None:
    """Runs one search in this process, its output in a file beside it; returns why it failed.

    Args:
        overrides: of the search's configuration.
        run: its directory.
        first: that of the world's first run, whose scores of base and experts it takes over.
    """
    from experiments.search_run import run_search

    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("a", encoding="utf-8") as output:
        logging.basicConfig(stream=output, level=logging.INFO, force=True)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                with initialize_config_module("conf", version_base="1.3"):
                    config = compose("search", overrides=overrides)
                if run != first:
                    share(first, run, config)
                run_search(config)
            except UserError as error:
                return str(error)
    return None


def _outputs(plan: Mapping[str, Any], config: DictConfig) -> list[Path]:
    own = Path(config.runs) / str(config.name) / "RESULTS.md"
    return [own, Path(plan["results"])] if plan.get("results") else [own]


def _plain(contest: DictConfig) -> dict[str, Any]:
    """Returns the contest's options, checked.

    Raises:
        UserError: one is missing or has no meaning; names it.
    """
    plan = OmegaConf.to_container(contest, resolve=True)
    assert isinstance(plan, dict)
    wanted = ("worlds", "options", "tables", "workers", "results", "title", "command")
    for key in wanted:
        if key not in plan:
            raise UserError(f"contest.{key} is missing")
    plan.pop("adapters", None)  # read by the options of worlds
    if unknown := sorted(set(plan) - set(wanted)):
        raise UserError(f"contest.{unknown[0]} is unknown: expected {', '.join(wanted)}")
    if not isinstance(plan["workers"], int) or plan["workers"] < 1:
        raise UserError(f"contest.workers={plan['workers']}: it must be at least 1")
    # What is switched off on the command line (contest.worlds.sentences=null) is left out.
    plan["worlds"] = {name: world for name, world in plan["worlds"].items() if world}
    plan["tables"] = {name: _without_none(t) for name, t in plan["tables"].items() if t}
    return {str(key): value for key, value in plan.items()}


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "arms": {name: arm for name, arm in table["arms"].items() if arm is not None}}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
