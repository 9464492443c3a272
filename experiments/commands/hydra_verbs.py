"""The verbs that are Hydra applications: search, check, merge, evaluate, statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from omegaconf import DictConfig

from experiments.runs.errors import UserError

Task = Callable[[DictConfig], float | None]


def search(arguments: Sequence[str]) -> int:
    """Runs a search, or a sweep of them; each returns the winner's fitness to Hydra's sweeper."""

    def task(config: DictConfig) -> float:
        if config.contest is not None:
            from experiments.contests.contest import run_contest

            return run_contest(config)
        if config.study is not None:
            from experiments.contests.custom_experiment import run_study

            return run_study(config)
        from experiments.searches.run import run_search

        return run_search(config)

    return _application("search", "search", task, arguments)


def check(arguments: Sequence[str]) -> int:
    """Assembles and checks a search without running it."""

    def task(config: DictConfig) -> None:
        if config.contest is not None:
            from experiments.contests.contest import check_contest

            return check_contest(config)
        if config.study is not None:
            from experiments.contests.custom_experiment import check_study

            return check_study(config)
        from experiments.searches.run import run_check

        return run_check(config)

    return _application("check", "search", task, arguments)


def merge(arguments: Sequence[str]) -> int:
    """Writes one static merge."""

    def task(config: DictConfig) -> None:
        from experiments.commands.merge_models import run_merge

        run_merge(config)

    return _application("merge", "merge", task, arguments)


def evaluate(arguments: Sequence[str]) -> int:
    """Scores one model."""

    def task(config: DictConfig) -> None:
        from experiments.commands.evaluate_model import run_evaluate

        run_evaluate(config)

    return _application("evaluate", "evaluate", task, arguments)


def statistics(arguments: Sequence[str]) -> int:
    """Gathers statistics of the experts' data, for merge methods that need them."""

    def task(config: DictConfig) -> None:
        from experiments.gathering.run import run_statistics

        run_statistics(config)

    return _application("statistics", "statistics", task, arguments)


def _application(verb: str, config_name: str, task: Task, arguments: Sequence[str]) -> int:
    """Runs `task` under Hydra; a UserError ends it as one sentence on standard error."""

    def guarded(config: DictConfig) -> Any:
        try:
            return task(config)
        except UserError as error:
            print(f"evomerge {verb}: {error}", file=sys.stderr)
            sys.exit(2)

    sys.argv = [f"evomerge {verb}", *arguments]
    hydra.main(version_base="1.3", config_path="pkg://conf", config_name=config_name)(guarded)()
    return 0
