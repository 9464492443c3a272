"""The verbs that are Hydra applications: search, check, merge, evaluate, statistics."""

from __future__ import annotations

from omegaconf import DictConfig

from experiments.runs.errors import one_sentence


def search(config: DictConfig) -> float:
    """Runs a search, or the many of a contest; returns the winner's fitness to the sweeper."""
    with one_sentence("evomerge search"):
        if config.contest is not None:
            from experiments.contests.contest import run_contest

            return run_contest(config)
        if config.study is not None:
            from experiments.contests.custom_experiment import run_study

            return run_study(config)
        from experiments.searches.run import run_search

        return run_search(config)


def check(config: DictConfig) -> None:
    """Assembles and checks a search without running it."""
    with one_sentence("evomerge check"):
        if config.contest is not None:
            from experiments.contests.contest import check_contest

            return check_contest(config)
        if config.study is not None:
            from experiments.contests.custom_experiment import check_study

            return check_study(config)
        from experiments.searches.run import run_check

        return run_check(config)


def merge(config: DictConfig) -> None:
    """Writes one static merge."""
    with one_sentence("evomerge merge"):
        from experiments.commands.merge_models import run_merge

        run_merge(config)


def evaluate(config: DictConfig) -> None:
    """Scores one model."""
    with one_sentence("evomerge evaluate"):
        from experiments.commands.evaluate_model import run_evaluate

        run_evaluate(config)


def statistics(config: DictConfig) -> None:
    """Gathers statistics of the experts' data, for merge methods that need them."""
    with one_sentence("evomerge statistics"):
        from experiments.gathering.run import run_statistics

        run_statistics(config)
