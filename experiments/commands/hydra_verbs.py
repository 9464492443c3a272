"""The verbs that are Hydra applications: search, merge, split vendor, zoo dedup and others."""

import math

from omegaconf import DictConfig

from experiments.commands.sweep import job


def search(config: DictConfig) -> float:
    """Runs a search, or the many of a suite; returns the winner's fitness to the sweeper."""
    fitness = math.nan  # what a sweeper is told of a job that was refused
    with job("evomerge search"):
        if config.suite is not None:
            from experiments.suites.suite import run_suite

            fitness = run_suite(config)
        elif config.procedure is not None:
            from experiments.suites.procedure import run_procedure

            fitness = run_procedure(config)
        else:
            from experiments.searches.finished import show_finished

            shown = show_finished(config)
            if shown is None:
                from experiments.searches.run import run_search

                shown = run_search(config)
            fitness = shown
    return fitness


def check(config: DictConfig) -> None:
    """Assembles and checks a search without running it."""
    with job("evomerge check"):
        if config.suite is not None:
            from experiments.suites.suite import check_suite

            return check_suite(config)
        if config.procedure is not None:
            from experiments.suites.procedure import check_procedure

            return check_procedure(config)
        from experiments.searches.run import run_check

        return run_check(config)


def merge(config: DictConfig) -> None:
    """Writes one static merge."""
    with job("evomerge merge"):
        from experiments.commands.merge_models import run_merge

        run_merge(config)


def evaluate(config: DictConfig) -> None:
    """Scores one model."""
    with job("evomerge evaluate"):
        from experiments.commands.evaluate_model import run_evaluate

        run_evaluate(config)


def statistics(config: DictConfig) -> None:
    """Gathers statistics of the experts' data, for merge methods that need them."""
    with job("evomerge statistics"):
        from experiments.gathering.run import run_statistics

        run_statistics(config)


def dedup(config: DictConfig) -> None:
    """Makes models of a base's blocks, within a loss of accuracy and under their ceilings of ε."""
    with job("evomerge zoo dedup"):
        from experiments.deduplication.run import run_dedup

        run_dedup(config)


def split_vendor(config: DictConfig) -> None:
    """Trains an expert on the states that a customer sends."""
    with job("evomerge split vendor"):
        from experiments.commands.split import run_vendor

        run_vendor(config)


def split_customer(config: DictConfig) -> None:
    """Sends a vendor the noised states of texts, and asks it about others."""
    with job("evomerge split customer"):
        from experiments.commands.split import run_customer

        run_customer(config)
